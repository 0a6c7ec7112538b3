"""Writes a choice of half-precision nodes into the graph: types, constants and Casts."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qgraph.graph import Graph, Node, Value
from qgraph.passes.half_types import Slots

# Attributes that name the type of a node's result.
_TYPE_ATTRIBUTES = {"Cast": "to", "EyeLike": "dtype"}


def rewrite(graph: Graph, half: Mapping[Node, Slots], dtype: ir.DataType) -> None:
    """Make the nodes in `half` compute in `dtype`; everything else sees float32 as before.

    Args:
        graph: Graph to rewrite.
        half: Nodes, with the positions of their inputs and outputs that change type.
        dtype: FLOAT16 or BFLOAT16.
    """
    # Dicts as ordered sets, so that names come out the same every time.
    native = {node.outputs[i]: None for node, found in half.items() for i in sorted(found.outputs)}
    read = {
        value: None
        for node, found in half.items()
        for value in (node.inputs[i] for i in sorted(found.inputs))
        if value is not None
    }
    for node in half:
        _set_result_type(graph, node, half[node], dtype)
    for value in native | read:
        uses = [(use.node, use.idx) for use in list(value.uses())]
        in_half = [(n, i) for n, i in uses if n in half and i in half[n].inputs]
        if value in native:
            _leave(graph, value, in_half, len(uses) > len(in_half), dtype)
        elif graph.is_constant(value):
            _enter_constant(graph, value, in_half, dtype)
        else:
            _enter(graph, value, in_half, dtype)
    _drop_idle_casts(graph, half)
    graph.remove_unread([n for n in graph.nodes("Constant") if n.outputs[0] in read])
    graph.drop_unread_initializers()


def half_constant(graph: Graph, value: Value, dtype: ir.DataType) -> Value:
    """Add a copy of a float32 constant in `dtype`, rounded to nearest even."""
    array = graph.array(value)
    assert array is not None
    with np.errstate(over="ignore"):  # infinities stay infinite; everything else was checked
        return graph.constant(f"{value.name}_{dtype.name.lower()}", array.astype(dtype.numpy()))


def _set_result_type(graph: Graph, node: Node, found: Slots, dtype: ir.DataType) -> None:
    if not found.outputs:
        return
    attribute = _TYPE_ATTRIBUTES.get(node.op_type)
    if attribute is not None:
        graph.set_attribute(node, attribute, int(dtype))
    if node.op_type == "ConstantOfShape":
        old = graph.attribute(node, "value")
        array = np.zeros(1, np.float32) if old is None else old.numpy()
        filled = ir.tensor(array.astype(dtype.numpy()), dtype=dtype)
        graph.set_attribute(node, "value", ir.AttrTensor("value", filled))


def _leave(
    graph: Graph,
    value: Value,
    in_half: list[tuple[Node, int]],
    read_in_float: bool,
    dtype: ir.DataType,
) -> None:
    """Give a result its half type, and one Cast back for whoever needs float32."""
    producer = value.producer()
    assert producer is not None
    if read_in_float or value.is_graph_output():
        name = f"{value.name}_float32"
        cast = graph.insert("Cast", [value], after=producer, name=name, like=value)
        graph.set_attribute(cast, "to", int(ir.DataType.FLOAT))
        # Everybody, the graph's interface included, moves to the Cast; then half readers return.
        graph.replace(value, cast.outputs[0])
        for node, index in [(cast, 0), *in_half]:
            graph.set_input(node, index, value)
    value.type = ir.TensorType(dtype)


def _enter(graph: Graph, value: Value, in_half: list[tuple[Node, int]], dtype: ir.DataType) -> None:
    """Cast a float32 value once, for all nodes that read it in half."""
    producer = value.producer()
    name = f"{value.name}_{dtype.name.lower()}"
    if producer is not None:
        cast = graph.insert("Cast", [value], after=producer, name=name, like=value)
    else:
        first = next(iter(graph.main))
        cast = graph.insert("Cast", [value], before=first, name=name, like=value)
    graph.set_attribute(cast, "to", int(dtype))
    cast.outputs[0].type = ir.TensorType(dtype)
    for node, index in in_half:
        graph.set_input(node, index, cast.outputs[0])


def _enter_constant(
    graph: Graph, value: Value, in_half: list[tuple[Node, int]], dtype: ir.DataType
) -> None:
    copy = half_constant(graph, value, dtype)
    for node, index in in_half:
        graph.set_input(node, index, copy)


def _drop_idle_casts(graph: Graph, half: Mapping[Node, Slots]) -> None:
    """Remove the model's own Casts that now have the same type on both sides."""
    for node in [n for n in half if n.op_type == "Cast"]:
        inner, outer = node.inputs[0], node.outputs[0]
        if inner is not None and inner.dtype == outer.dtype:
            graph.replace(outer, inner)
            graph.remove(node)
