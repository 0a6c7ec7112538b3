"""Rotary position embeddings: what is turned, and the tables of cosines and sines behind it."""

from dataclasses import dataclass

import numpy as np

from qgraph.graph import Graph, Value
from qgraph.passes.contrib._causal import Lengths, counts_to
from qgraph.passes.contrib._lengths import (
    Array,
    AtLengths,
    UnknownError,
    constants_behind,
    dynamic_axes,
)
from qgraph.pattern import Match, Pattern, match, one_of, op, var

_x, _cos, _sin = var("x"), var("cos"), var("sin")


def _halves() -> Pattern:
    """Match [a cos - b sin, b cos + a sin] with a and b the two halves of x; the Split is cut."""
    a, b = var("a"), var("b")
    return op.Concat(
        op.Sub(op.Mul(a, _cos), op.Mul(b, _sin)),
        op.Add(op.Mul(b, _cos), op.Mul(a, _sin)),
        bind="joined",
    )


def _rotate_half() -> Pattern:
    """Match x cos + [-b, a] sin, as most exporters write it."""
    turned = op.Concat(op.Neg(var("b")), var("a"), bind="joined")
    return op.Add(op.Mul(_x, _cos), op.Mul(turned, _sin))


_PATTERN = one_of(_halves(), _rotate_half())


@dataclass(frozen=True)
class Rotation:
    """A value whose halves are turned by its positions' angles.

    Attributes:
        source: What is turned, [batch, heads, length, size].
        cos: What it is multiplied by.
        sin: The same.
    """

    source: Value
    cos: Value
    sin: Value


@dataclass(frozen=True)
class Table:
    """Cosines or sines of every position.

    Attributes:
        constant: Where they are.
        rows: Float array [positions, half the length of a head].
    """

    constant: Value
    rows: Array

    def written(self, graph: Graph) -> Value:
        """Return the rows as a constant of the graph, the one they are from if it fits."""
        if graph.shape(self.constant) == self.rows.shape:
            return self.constant
        return graph.constant(f"{self.constant.name}_half", self.rows)


def rotation(graph: Graph, value: Value) -> Rotation | None:
    """Return how a value was turned; None if it was not, or not in halves."""
    node = value.producer()
    found = None if node is None else match(graph, _PATTERN, node)
    if found is None or graph.attribute(found.node("joined"), "axis") not in (-1, 3):
        return None
    source = _split(graph, found)
    if source is None or ("x" in found and found.value("x") is not source):
        return None
    return Rotation(source, found.value("cos"), found.value("sin"))


def _split(graph: Graph, m: Match) -> Value | None:
    """Return what `a` and `b` are the first and the second half of."""
    a, b = m.value("a"), m.value("b")
    first, second = a.producer(), b.producer()
    if first is None or second is None:
        return None
    source = first.inputs[0]
    size = (graph.shape(source) or (None,))[-1]
    if source is None or second.inputs[0] is not source or not isinstance(size, int):
        return None
    half = size // 2
    if any((graph.shape(v) or (None,))[-1] != half for v in (a, b)) or size % 2:
        return None
    if first is second and graph.is_standard(first, "Split"):
        axis = graph.attribute(first, "axis", 0)
        ordered = (a, b) == tuple(first.outputs) and axis in (-1, 3)
        return source if ordered else None
    if not (graph.is_standard(first, "Slice") and graph.is_standard(second, "Slice")):
        return None
    # Slices of half the length: which one, their starts say.
    starts = [graph.scalar(node.inputs[1]) for node in (first, second)]
    steps = [graph.scalar(node.inputs[4]) for node in (first, second) if len(node.inputs) > 4]
    ordered = starts[0] in (0.0, -float(size)) and starts[1] in (float(half), -float(half))
    return source if ordered and all(step == 1.0 for step in steps) else None


def table(graph: Graph, value: Value, lengths: Lengths, half: int) -> Table | None:
    """Return the constant of which a value is the rows of the new tokens' positions.

    Args:
        graph: The graph.
        value: Cosines or sines, [..., queries, half], or [..., queries, 2 * half] twice the same.
        lengths: Of the attention's mask.
        half: Half the length of a head.
    """
    if counts_to(graph, value) is not None:
        return None  # other angles for longer texts, perhaps
    for constant in constants_behind(graph, value):
        array = graph.array(constant)
        if array is None or array.dtype.kind != "f" or array.ndim < 2:
            continue
        rows = array.reshape(-1, array.shape[-1])
        if rows.shape[0] == array.shape[-2] and _are_rows(graph, value, rows, lengths):
            if rows.shape[1] == 2 * half and (rows[:, :half] == rows[:, half:]).all():
                rows = np.ascontiguousarray(rows[:, :half])
            return Table(constant, rows) if rows.shape[1] == half else None
    return None


def _are_rows(graph: Graph, value: Value, rows: Array, lengths: Lengths) -> bool:
    """Whether a value is rows[past : past + queries], at several lengths."""
    axes = dynamic_axes(graph)
    symbols = {place: symbol for symbol, place in axes.items()}
    for queries, past in ((5, 3), (1, 6), (7, 0)):
        at = dict.fromkeys(axes, 2)
        wanted = []
        for length, size in ((lengths.queries, queries), (lengths.past, past)):
            if isinstance(length, int):
                wanted.append(length)
            else:
                at[symbols[length]] = size
                wanted.append(size)
        count, start = wanted
        try:
            array = AtLengths(graph, at)(value)
        except UnknownError:
            return False
        expected = rows[start : start + count]
        if array.size != expected.size or not (array.reshape(expected.shape) == expected).all():
            return False
    return True
