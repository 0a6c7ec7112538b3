"""Dividing a value by a power of two, in the constants of what computes it."""

from collections.abc import Collection, Iterator

import numpy as np

from qgraph.graph import Graph, Node, Value
from qgraph.passes.fusions._constants import constant, folded

# Whose result is divided where their parameters are.
_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
# f(x / s) = f(x) / s for s above 0, in their first input alone.
_HOMOGENEOUS = frozenset(
    {
        *("Abs", "Expand", "Flatten", "Gather", "Identity", "LeakyRelu", "Neg", "Relu", "Reshape"),
        *("Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)

Place = tuple[Node, int]


def places(graph: Graph, value: Value, readers: Collection[Node]) -> list[Place] | None:
    """Find constants that, divided by one number, divide `value` by it and change nothing else.

    A norm's scale and bias; the weight and bias of a product; either operand of a Mul or of a
    product of activations, as the values of attention are; through operators that only move
    elements, and Relu.

    Args:
        graph: The graph; it is not changed.
        value: The value.
        readers: Those who may see it divided.

    Returns:
        Inputs of nodes, or None where there are none.
    """
    node = value.producer()
    if node is None or value.is_graph_output() or node.graph is not graph.main:
        return None
    if any(reader not in readers for reader in graph.readers(value)):
        return None
    if node.op_type in _NORMS and value is node.outputs[0]:
        return _parameters(graph, node)
    if not graph.is_standard(node):
        return None
    if node.op_type in _HOMOGENEOUS:
        return _through(graph, node, 0)
    if node.op_type == "Add":
        return _all(graph, node)
    if node.op_type in ("Mul", "MatMul"):
        # The second operand first: the weight, or the values that attention averages.
        return next((found for i in (1, 0) if (found := _through(graph, node, i))), None)
    return None


def divide(graph: Graph, found: list[Place], scale: float) -> None:
    """Divide the constants; other readers of them keep what they have."""
    for node, index in found:
        old = node.inputs[index]
        array = constant(graph, old)
        assert old is not None and array is not None
        divided = (array.astype(np.float64) / scale).astype(array.dtype)
        graph.set_input(node, index, folded(graph, old, divided))
    graph.drop_unread_initializers()


def _parameters(graph: Graph, norm: Node) -> list[Place] | None:
    """Scale and bias of a norm, if all are constants."""
    found = [(norm, i) for i, v in enumerate(norm.inputs) if i and v is not None]
    known = all(constant(graph, norm.inputs[i]) is not None for _, i in found)
    return found if found and known else None


def _through(graph: Graph, node: Node, index: int) -> list[Place] | None:
    """What divides one input of `node`."""
    value = node.inputs[index]
    if constant(graph, value) is not None:
        return [(node, index)]
    # Read twice by this node, as in x * x, it would be divided twice.
    if value is None or list(node.inputs).count(value) > 1:
        return None
    return places(graph, value, (node,))


def _all(graph: Graph, node: Node) -> list[Place] | None:
    """What divides every input of `node`."""
    found = [_through(graph, node, index) for index in range(len(node.inputs))]
    return None if None in found else list(_joined(found))


def _joined(found: list[list[Place] | None]) -> Iterator[Place]:
    for each in found:
        yield from each or ()
