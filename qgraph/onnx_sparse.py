"""Sparse constants: taken out of a message before onnx-ir reads it, since it can't hold them."""

import onnx

from qgraph.onnx_checks import bodies_of


def take_sparse(proto: onnx.ModelProto) -> dict[str, onnx.SparseTensorProto]:
    """Remove sparse constants from a model and return them by name.

    A Constant node with a sparse value becomes a sparse initializer, which means the same. One
    inside a subgraph moves to the outermost graph, and an Identity takes its place. For the time
    of reading the names are declared as graph inputs; the caller removes these.
    """
    found = _take_from(proto.graph)
    inner: dict[str, onnx.SparseTensorProto] = {}
    bodies = _bodies(proto.graph)
    while bodies:
        body = bodies.pop()
        inner.update(_hoist(body, len(inner), set(found)))
        bodies.extend(_bodies(body))
    found.update(inner)
    for name, tensor in found.items():
        info = onnx.helper.make_tensor_value_info(name, tensor.values.data_type, list(tensor.dims))
        proto.graph.input.append(info)
    return found


def _take_from(graph: onnx.GraphProto) -> dict[str, onnx.SparseTensorProto]:
    found: dict[str, onnx.SparseTensorProto] = {}
    for tensor in graph.sparse_initializer:
        found[tensor.values.name] = _named(tensor, tensor.values.name)
    del graph.sparse_initializer[:]
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if _is_sparse(node):
            found[node.output[0]] = _named(node.attribute[0].sparse_tensor, node.output[0])
            del graph.node[index]
    return found


def _hoist(body: onnx.GraphProto, count: int, taken: set[str]) -> dict[str, onnx.SparseTensorProto]:
    if not body.sparse_initializer and not any(_is_sparse(node) for node in body.node):
        return {}
    hoisted: dict[str, onnx.SparseTensorProto] = {}
    identities = []
    for name, tensor in _take_from(body).items():
        outer = f"{name}_sparse_{count + len(hoisted)}"
        while outer in taken:
            outer += "_"
        hoisted[outer] = _named(tensor, outer)
        identities.append(onnx.helper.make_node("Identity", [outer], [name]))
    nodes = [*identities, *map(_copy, body.node)]
    del body.node[:]
    body.node.extend(nodes)
    return hoisted


def _bodies(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    return [body for node in graph.node for attr in node.attribute for body in bodies_of(attr)]


def _is_sparse(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and any(a.name == "sparse_value" for a in node.attribute)


def _named(tensor: onnx.SparseTensorProto, name: str) -> onnx.SparseTensorProto:
    copy = onnx.SparseTensorProto()
    copy.CopyFrom(tensor)
    copy.values.name = name
    return copy


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
