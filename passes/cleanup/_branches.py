"""Putting the body of a decided If into the graph that holds it."""

import onnx_ir as ir

from qgraph.graph import Graph, Node


def inline_branch(graph: Graph, node: Node, body: ir.Graph) -> list[Node]:
    """Replace an If by one of its bodies; return the body's nodes, which now stand before it.

    The body's values get fresh names, since those of other subgraphs may be the same.
    """
    owner = node.graph
    assert owner is not None
    results = list(body.outputs)
    body.outputs.clear()
    for value in list(body.initializers.values()):
        del body.initializers[value.name or ""]
        value.name = graph.fresh(value.name or "constant")
        owner.register_initializer(value)
    moved = list(body)
    body.remove(moved)
    for inner in moved:
        inner.name = graph.fresh(inner.name or inner.op_type)
        for out in inner.outputs:
            if out.name:
                out.name = graph.fresh(out.name)
    owner.insert_before(node, moved)
    for old, new in zip(node.outputs, results, strict=True):
        graph.replace(old, new)
    graph.remove(node)
    return moved
