"""Shapes behind operators that ONNX's shape inference does not know: what runs through a network.

Between contributed operators there are only products with weights, normalisations and elementwise
operators.
"""

import onnx_ir as ir

from qgraph.graph import Graph, Node, Value
from qgraph.passes.contrib._contributed import DOMAIN

Dims = tuple[int | str | None, ...]

_LIKE_FIRST = frozenset(
    {
        *("Cast", "Identity", "LayerNormalization", "RMSNormalization"),
        *("Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Neg"),
        *("Relu", "Sigmoid", "Softplus", "Sqrt", "Swish", "Tanh"),
    }
)
# Heads together are as wide in the result as in the queries.
_ATTENTION = frozenset({"GroupQueryAttention", "MultiHeadAttention"})
_ELEMENTWISE = frozenset({"Add", "Div", "Mul", "Sub"})
_GENERATED = "unk__"  # symbols of onnx's shape inference, which mean nothing


def complete_shapes(graph: Graph) -> None:
    """Write down shapes that follow from known ones in front of them."""
    for node in graph.nodes():
        if node.outputs and not _known(graph.shape(node.outputs[0])):
            shape = _result(graph, node)
            if _known(shape):
                assert shape is not None, "_known says so"
                node.outputs[0].shape = ir.Shape(shape)


def _known(shape: Dims | None) -> bool:
    return shape is not None and not any(
        dim is None or (isinstance(dim, str) and dim.startswith(_GENERATED)) for dim in shape
    )


def _result(graph: Graph, node: Node) -> Dims | None:
    shapes = [graph.shape(value) for value in node.inputs]
    first = shapes[0] if shapes else None
    if not first:
        return None
    if node.op_type == "MatMulNBits":
        return (*first[:-1], graph.attribute(node, "N"))
    if node.op_type in _ATTENTION and node.domain == DOMAIN:
        return first
    if not graph.is_standard(node):
        return None
    if node.op_type in _LIKE_FIRST:
        return first
    if node.op_type == "MatMul" and len(shapes[1] or ()) == 2 and len(first) > 1:
        return (*first[:-1], (shapes[1] or ())[1])
    if node.op_type in _ELEMENTWISE:
        return _wider(graph, node.inputs[0], node.inputs[1])
    return None


def _wider(graph: Graph, one: Value | None, other: Value | None) -> Dims | None:
    """Return the shape of an elementwise result where it is that of an operand."""
    first, second = graph.shape(one), graph.shape(other)
    if first is None or second is None or first == second:
        return first if first == second else None
    narrow, wide = sorted((first, second), key=len)
    if len(narrow) == len(wide):
        return None
    rest = wide[len(wide) - len(narrow) :]
    return wide if all(a in (1, b) for a, b in zip(narrow, rest, strict=True)) else None
