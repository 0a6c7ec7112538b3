"""Opset upgrades: onnx's version converter says what to change, and only that is changed here.

The converter works on a message of its own kind and drops much of what a model has around its
numbers (metadata, annotations, denotations, functions). So its result is taken as instructions:
nodes that it left alone stay the objects they are.
"""

from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import suppress

import onnx
import onnx_ir as ir

from qgraph.collector import collector_paused
from qgraph.graph import Graph
from qgraph.onnx_checks import first_line
from qgraph.onnx_convert import fill_in, light_proto

# Values by name; the first map is that of the graph at hand, the others those of outer graphs.
Scope = ChainMap[str, ir.Value]


def upgrade_opset(graph: Graph, version: int) -> str | None:
    """Convert to a newer default opset with onnx's version converter, in place.

    Shapes are inferred on the way.

    Returns:
        None on success, else one line that says why the model was kept as it is.
    """
    if graph.opset >= version:
        return None
    if graph.model.functions:
        return "the model has local functions, which onnx's version converter drops"
    with collector_paused():
        try:
            before = light_proto(graph)
            after = onnx.version_converter.convert_version(before, version)
            names = {name for graph in _graphs(before.graph) for name in _results(graph)}
            for number, body in enumerate(_graphs(after.graph)):
                if number:
                    _rename(body, {n: f"{n}_{number}" for n in _results(body) if n not in names})
            onnx.checker.check_model(after)
        except Exception as error:  # noqa: BLE001 - a C++ library; any failure keeps the old opset
            return f"onnx's version converter failed: {first_line(error)}"
        lost = _lost(before.graph, after.graph)
        if lost:
            return f"onnx's version converter lost {lost}"
        with suppress(Exception):  # the same library; without it shapes stay as they are
            after = onnx.shape_inference.infer_shapes(after, data_prop=True)
        _graft(graph.main, before.graph, after.graph, ChainMap())
        fill_in(graph.main, after.graph)
    graph.model.opset_imports.pop("ai.onnx", None)
    graph.model.opset_imports[""] = version
    graph.forget_names()
    return None


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and its subgraphs, outer ones first."""
    yield graph
    for node in graph.node:
        for body in _bodies(node).values():
            yield from _graphs(body)


def _results(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.output


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename values of a body: the converter numbers those it makes anew in every graph."""
    if not names:
        return
    for each in _graphs(graph):
        for node in each.node:
            for side in (node.input, node.output):
                for index, name in enumerate(side):
                    if name in names:
                        side[index] = names[name]


def _lost(before: onnx.GraphProto, after: onnx.GraphProto) -> str:
    """Return what is missing in a converted graph, or nothing."""
    if [v.name for v in before.input] != [v.name for v in after.input][: len(before.input)]:
        return "an input"
    if [v.name for v in before.output] != [v.name for v in after.output]:
        return "an output"
    made = {name for node in after.node for name in node.output}
    for node in before.node:
        if not all(name in made for name in node.output[:1]):
            return f"a result of {node.op_type} {node.name!r}"
    twins = {node.output[0]: node for node in after.node if node.output}
    for node in before.node:
        bodies = _bodies(node)
        if not bodies:
            continue
        others = _bodies(twins[node.output[0]])
        if bodies.keys() != others.keys():
            return f"the bodies of {node.op_type} {node.name!r}"
        for name, body in bodies.items():
            inner = _lost(body, others[name])
            if inner:
                return inner
    return ""


def _graft(owner: ir.Graph, before: onnx.GraphProto, after: onnx.GraphProto, outer: Scope) -> None:
    """Make the nodes of `owner` those of `after`, keeping every node that is the same."""
    scope = outer.new_child({value.name: value for value in _defined(owner) if value.name})
    # Only results of this graph's own nodes give way to new ones of the same name.
    results = {out.name: out for node in owner for out in node.outputs if out.name}
    for tensor in after.initializer:
        if tensor.name not in scope:
            scope[tensor.name] = _initializer(owner, tensor)
    originals = {
        message.output[0]: (node, message)
        for node, message in zip(owner, before.node, strict=True)
        if message.output
    }
    order: list[ir.Node] = []
    for message in after.node:
        node, was = originals.get(message.output[0] if message.output else "", (None, None))
        if node is not None and was is not None and _same(was, message):
            for name, body in _bodies(message).items():
                _graft(node.attributes[name].as_graph(), _bodies(was)[name], body, scope)
        else:
            node = _replacement(message, node, scope, results)
        order.append(node)
    kept = set(order)
    dropped = [node for node in owner if node not in kept]
    owner.remove(list(owner))
    for node in dropped:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
    owner.extend(order)


def _same(was: onnx.NodeProto, now: onnx.NodeProto) -> bool:
    """Whether a node is unchanged but for its bodies and what the converter always drops."""
    if was.op_type != now.op_type or was.domain != now.domain:
        return False
    if was.input != now.input or was.output != now.output:
        return False
    if len(was.attribute) != len(now.attribute):
        return False
    if not was.attribute:
        return True
    return _attributes(was) == _attributes(now)


def _attributes(node: onnx.NodeProto) -> dict[str, bytes]:
    """Serialize a node's attributes by name, without bodies, docs and the names of tensors.

    Tensors count as equal whatever they hold: the converter writes the same numbers into other
    fields, and it never changes a tensor of a node that it keeps.
    """
    found = {}
    for attr in node.attribute:
        if attr.HasField("t") or attr.HasField("g"):
            found[attr.name] = b""
            continue
        if attr.doc_string:
            copy = onnx.AttributeProto()
            copy.CopyFrom(attr)
            copy.doc_string = ""
            attr = copy
        found[attr.name] = attr.SerializeToString(deterministic=True)
    return found


def _replacement(
    message: onnx.NodeProto, old: ir.Node | None, scope: Scope, results: Mapping[str, ir.Value]
) -> ir.Node:
    """Build a node as the converter wants it; its results take the places of those they replace."""
    node = ir.Node(
        message.domain,
        message.op_type,
        [scope[name] if name else None for name in message.input],
        [ir.serde.deserialize_attribute(attr) for attr in message.attribute],
        num_outputs=len(message.output),
        name=message.name or (old.name if old is not None else None),
        doc_string=old.doc_string if old is not None else None,
        metadata_props=dict(old.metadata_props) if old is not None else None,
    )
    for name, output in zip(message.output, node.outputs, strict=True):
        if name in results:
            _take_place(results[name], output)
        output.name = name
        scope[name] = output
    return node


def _take_place(old: ir.Value, new: ir.Value) -> None:
    new.type, new.shape, new.doc_string = old.type, old.shape, old.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _initializer(owner: ir.Graph, tensor: onnx.TensorProto) -> ir.Value:
    data = ir.serde.deserialize_tensor(tensor)
    value = ir.Value(
        name=tensor.name,
        type=ir.TensorType(data.dtype),
        shape=ir.Shape(data.shape.numpy()),
        const_value=data,
    )
    owner.register_initializer(value)
    return value


def _bodies(node: onnx.NodeProto) -> dict[str, onnx.GraphProto]:
    return {attr.name: attr.g for attr in node.attribute if attr.HasField("g")}


def _defined(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        for value in node.inputs:
            # Sparse constants have no other place of definition.
            if value is not None and value.producer() is None:
                yield value
        yield from node.outputs
    yield from graph.inputs
    yield from graph.initializers.values()
