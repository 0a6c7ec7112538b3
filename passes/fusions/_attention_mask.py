"""Whether an attention mask hides later positions, however it was written."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.passes.fusions._attention_heads import VIEWS

# Operators that masks are computed with. The search goes through nothing else, so that it never
# leaves the mask for the network.
_LOGIC = {"And", "Equal", "Not", "Or", "Where", "Xor"}
_ARITHMETIC = {"Add", "Div", "Max", "Min", "Mul", "Neg", "Sub"}
_COMPARISONS = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_LAYOUT = VIEWS | {"Expand", "Gather", "Slice", "Tile", "Transpose"}
_MASK_OPS = _LAYOUT | _LOGIC | _ARITHMETIC | _COMPARISONS
_POSITION_OPS = VIEWS | {"Add", "Expand", "Gather", "Slice", "Sub"}
# Values looked at for one mask; the masks of exporters have some 20 to 40 nodes.
_LIMIT = 200
_LARGEST_MASK = 1 << 26


def is_causal(graph: Graph, mask: Value) -> bool:
    """Whether a mask is lower triangular.

    It is if it is computed from a constant lower-triangular matrix, from Trilu, or from comparing
    two ranges of positions.

    Args:
        graph: The graph.
        mask: An additive mask [..., queries, keys], or the condition of a Where.
    """
    waiting, seen = [mask], {mask}
    while waiting and len(seen) < _LIMIT:
        value = waiting.pop()
        tensor = graph.tensor(value)
        if tensor is not None:
            # A larger one is a table, and reading it would take its time.
            if tensor.size <= _LARGEST_MASK and is_lower_triangular(tensor.numpy()):
                return True
            continue
        node = value.producer()
        if node is None or not graph.is_standard(node):
            continue
        if node.op_type == "Trilu":
            return True
        if node.op_type in _COMPARISONS and all(_counts(graph, each) for each in node.inputs):
            return True
        if node.op_type in _MASK_OPS:
            fresh = [each for each in node.inputs if each is not None and each not in seen]
            waiting += fresh
            seen.update(fresh)
    return False


def is_lower_triangular(array: NDArray[Any]) -> bool:
    """Whether the last two axes, [queries, keys], hold one value up to the diagonal only.

    The diagonal ends in the lower right corner, so that the last query sees all keys.
    """
    if array.ndim < 2 or array.shape[-2] < 2 or not array.size:
        return False
    queries, keys = array.shape[-2:]
    if keys < queries:
        return False
    matrices = array.reshape(-1, queries, keys)
    lower = np.tri(queries, keys, keys - queries, dtype=bool)
    return bool(((matrices == matrices[:, :1, :1]) == lower).all())


def _counts(graph: Graph, value: Value | None) -> bool:
    """Whether a value holds positions: a Range, or a constant 0, 1, 2, ..., perhaps shifted."""
    for _ in range(16):
        array = graph.array(value)
        if array is not None:
            flat = array.reshape(-1)
            return array.dtype.kind in "iu" and flat.size > 1 and bool((np.diff(flat) == 1).all())
        node = None if value is None else value.producer()
        if node is None or not graph.is_standard(node):
            return False
        if node.op_type == "Range":
            return True
        if node.op_type not in _POSITION_OPS:
            return False
        value = _main_operand(graph, node)
    return False


def _main_operand(graph: Graph, node: Node) -> Value | None:
    """Return the operand that is no shift: of Add and Sub, the one with more elements."""
    first = node.inputs[0]
    if node.op_type not in {"Add", "Sub"}:
        return first
    return node.inputs[1] if graph.rank(first) == 0 or graph.scalar(first) is not None else first
