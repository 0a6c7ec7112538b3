"""Proves that a mask hides later positions and nothing else, and tells its lengths apart."""

from dataclasses import dataclass

import numpy as np

from qgraph.graph import Graph, Value
from qgraph.passes.contrib._lengths import (
    Array,
    AtLengths,
    UnknownError,
    constants_behind,
    dynamic_axes,
)
from qgraph.passes.fusions._attention_mask import is_lower_triangular
from qgraph.pipeline import Reject

# A score that is lowered by this much has no part in a softmax; float16 ends at -65504.
_HIDDEN = -1e4
# Numbers in a mask's arithmetic: axes and shifts, or what stands for "to the end". Those between
# could be the width of a window, which short sequences do not show.
_SMALL, _ENDLESS = 4, 2**31 - 1
# Lengths that tell axes apart, none the sum or half of others.
_DISTINCT = (5, 3, 11, 23, 47, 95, 191, 383)

# A constant length, or the axis of a graph input.
Length = int | tuple[Value, int]


@dataclass(frozen=True)
class Lengths:
    """What decides the shape of a causal mask [queries, keys].

    Attributes:
        queries: New tokens in a run.
        past: Tokens before them; 0 without a cache.
    """

    queries: Length
    past: Length


def causal_lengths(graph: Graph, mask: Value, condition: bool = False) -> Lengths | Reject:
    """Return the lengths of a mask that is causal at all of them, or the reason why it may not be.

    The mask is computed at several lengths and compared, so it does not matter how it is written.

    Args:
        graph: The graph.
        mask: [..., queries, keys], added to the scores.
        condition: Whether it is True where a score counts, instead of something added.
    """
    axes = dynamic_axes(graph)
    first = dict(zip(axes, _DISTINCT, strict=False))
    if len(first) < len(axes):
        return Reject("the model has too many dynamic axes to tell its lengths apart")
    try:
        rows, columns = _plane(AtLengths(graph, first)(mask)).shape
        queries, past = _named(first, rows), _named(first, columns - rows)
        if queries is None or past is None:
            return Reject("its mask is not one of the new tokens by all tokens")
        symbols = [each for each in (queries, past) if isinstance(each, str)]
        for lengths in _trials(first, symbols):
            plane = _plane(AtLengths(graph, lengths)(mask))
            if not _is_causal(plane, condition):
                return Reject("its mask is not causal, or not only that")
    except UnknownError as error:
        return Reject(f"its mask depends on {error}")
    reason = _may_be_window(graph, mask, rows if isinstance(queries, int) else 0)
    if reason is not None:
        return Reject(reason)
    return Lengths(*(axes[x] if isinstance(x, str) else x for x in (queries, past)))


def _trials(first: dict[str, int], symbols: list[str]) -> list[dict[str, int]]:
    pairs = [(5, 3), (1, 6), (64, 0), (1, 0), (2, 61)]
    return [first, *(first | dict(zip(symbols, pair, strict=False)) for pair in pairs)]


def _named(lengths: dict[str, int], size: int) -> str | int | None:
    """Return the symbol of a length; the length itself where it is no dynamic one."""
    found = [symbol for symbol, length in lengths.items() if length == size]
    return found[0] if found else size if size >= 0 else None


def _plane(mask: Array) -> Array:
    """Return [queries, keys]; other axes must be of length 1."""
    if mask.ndim < 2 or mask.size != mask.shape[-2] * mask.shape[-1]:
        raise UnknownError("batch or heads")
    return mask.reshape(mask.shape[-2:])


def _is_causal(plane: Array, condition: bool) -> bool:
    rows, columns = plane.shape
    if columns < rows or (plane.dtype == bool) != condition:
        return False
    visible = np.tri(rows, columns, columns - rows, dtype=bool)
    if condition:
        return bool((plane == visible).all())
    return bool((plane[visible] == 0).all() and (plane[~visible] <= _HIDDEN).all())


def _may_be_window(graph: Graph, mask: Value, rows: int) -> str | None:
    """Say what could narrow the mask beyond the lengths that were tried."""
    if graph.is_constant(mask):
        return None
    count = counts_to(graph, mask, rows)
    if count is not None:
        return f"its mask counts to {count}, which may be a window"
    for value in constants_behind(graph, mask):
        array = graph.array(value)
        if array is None or array.ndim < 2 or min(array.shape[-2:]) < 2:
            continue
        if not is_lower_triangular(array):
            return f"its mask is cut from {value.name!r}, which is not causal"
    return None


def counts_to(graph: Graph, value: Value, known: int = 0) -> int | None:
    """Return an integer that a value is computed with and that the lengths tried do not reach.

    Args:
        graph: The graph.
        value: Computed from lengths.
        known: A length that is constant, and so no such number.
    """
    for constant in constants_behind(graph, value):
        array = graph.array(constant)
        if array is None or array.dtype.kind not in "iu" or array.size > _SMALL:
            continue
        for number in np.abs(array.reshape(-1)).tolist():
            if _SMALL < number < _ENDLESS and number != known:
                return int(number)
    return None
