"""A part of a graph as a graph of its own."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.structure import bodies_of


def subgraph(
    graph: Graph,
    nodes: Sequence[Node],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    weights: Mapping[Value, NDArray[Any]] | None = None,
) -> Graph:
    """Copy some nodes into a graph of their own; constants are shared, not copied.

    Args:
        graph: Where the nodes are.
        nodes: In an order in which they can run.
        inputs: Values that come from outside; each is written by none of the nodes.
        outputs: Values to hand out, each written by one of the nodes or one of `inputs`.
        weights: Arrays that stand in for constants, of the same shape and type.

    Returns:
        A graph whose values have the names that they have in `graph`.
    """
    constants = [v for node in nodes for v in read_by(node) if v.is_initializer()]
    view = ir.GraphView(
        inputs,
        outputs,
        nodes=nodes,
        initializers=[v for v in dict.fromkeys(constants) if v not in set(inputs)],
        opset_imports=graph.model.opset_imports,
        name="part",
    )
    model = ir.Model(view.clone(), ir_version=graph.model.ir_version)
    for value, array in (weights or {}).items():
        inner = model.graph.initializers.get(value.name or "")
        if inner is not None:
            inner.const_value = ir.Tensor(array, name=value.name)
    return Graph(model, source=graph.source)


def read_by(node: Node) -> Iterable[Value]:
    """Yield what a node reads, the values that its bodies take from outside included."""
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        for body in bodies_of(attribute):
            inside = {*body.inputs, *body.initializers.values()}
            for inner in body:
                inside.update(inner.outputs)
                yield from (v for v in read_by(inner) if v not in inside)
            yield from (v for v in body.outputs if v not in inside)
