"""The error that candidate encodings make on a tensor, as its readers will feel it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import INTEGERS, Encoding
from qgraph.graph import Graph, Node, Value

# Added to every error, as a share of the signal: 120 dB down, so that a perfect sample, whose
# logarithm would be infinite, is merely very good.
FLOOR = 1e-12
# Elements at a time, so that all candidates' working arrays stay in the cache.
BLOCK = 1 << 15


def channel_weights(graph: Graph, value: Value) -> tuple[int, NDArray[np.float64]] | None:
    """How strongly each channel of `value` moves the results of the layers that read it.

    If errors of elements are independent, the squared error of a Conv, Gemm or MatMul's result is
    the sum of its inputs' squared errors, each times the sum of its squared weights.

    Args:
        graph: The graph.
        value: An activation.

    Returns:
        The axis of the channels and float64 [channels], the sum of squared weights over all
        layers that read `value` and have constant weights. None if there is no such layer, or
        two of them have their channels on different axes.
    """
    total: tuple[int, NDArray[np.float64]] | None = None
    for use in value.uses():
        found = _layer_weights(graph, use.node) if use.idx == 0 else None
        if found is None:
            continue
        if total is None:
            total = found
        elif total[0] != found[0] or total[1].shape != found[1].shape:
            return None
        else:
            total = (total[0], total[1] + found[1])
    return total


def _layer_weights(graph: Graph, node: Node) -> tuple[int, NDArray[np.float64]] | None:
    if not graph.is_standard(node, "Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    weight = graph.array(node.inputs[1])
    if weight is None:
        return None
    energy = np.square(weight, dtype=np.float64)
    if node.op_type == "Conv":  # [out, in / groups, ...]
        groups = graph.attribute(node, "group", 1)
        per_group = energy.reshape(groups, -1, energy.shape[1], *energy.shape[2:])
        return 1, per_group.sum(axis=(1, *range(3, per_group.ndim))).reshape(-1)
    if node.op_type == "ConvTranspose":  # [in, out / groups, ...]
        return 1, energy.sum(axis=tuple(range(1, energy.ndim)))
    if node.op_type == "Gemm" and not graph.attribute(node, "transA", 0):
        return -1, energy.sum(axis=0 if graph.attribute(node, "transB", 0) else 1)
    if node.op_type == "MatMul" and energy.ndim == 2:
        return -1, energy.sum(axis=1)
    return None


def encoding_errors(
    x: NDArray[np.floating],
    encodings: Mapping[str, Encoding],
    weights: tuple[int, NDArray[np.float64]] | None,
) -> dict[str, float]:
    """Return the weighted squared error of each encoding on one sample, never 0.

    Args:
        x: One sample's values, any shape but empty.
        encodings: Candidates for the whole tensor, by name; equal ones are computed once.
        weights: Axis and weight of each channel, as from `channel_weights`; None for equal ones.
    """
    values = np.ascontiguousarray(x, np.float32)
    if weights is None or not -values.ndim <= weights[0] < values.ndim:
        weights = (0, np.ones(1))
        values = values.reshape(1, -1)
    axis, weight = weights[0] % values.ndim, weights[1]
    cells = values.reshape(math.prod(values.shape[:axis]), len(weight), -1)
    span = (float(values.min()), float(values.max()))
    signal = sum(float(_energy(block) @ weight[first:last]) for first, last, block in _cut(cells))
    least = max(FLOOR * signal, float(np.finfo(np.float32).tiny))
    errors: dict[str, float] = {}
    known: dict[tuple[str, float, int], float] = {}
    for name, encoding in encodings.items():
        key = (encoding.dtype, float(encoding.scale), int(encoding.zero_point))
        if key not in known:
            known[key] = _error(cells, weight, encoding, span) + least
        errors[name] = known[key]
    return errors


def _error(
    cells: NDArray[np.float32],
    weight: NDArray[np.float64],
    encoding: Encoding,
    span: tuple[float, float],
) -> float:
    """Weighted squared error of one encoding.

    Args:
        cells: Values [before, channels, behind].
        weight: One for each channel.
        encoding: The candidate.
        span: Least and greatest value.
    """
    first_code, last_code, _ = INTEGERS[encoding.dtype]
    zero = int(encoding.zero_point)
    scale = encoding.scale
    clips = (
        span[0] < (first_code - zero) * float(scale),
        span[1] > (last_code - zero) * float(scale),
    )
    # Arrays: with numbers instead, numpy's minimum and maximum take three times as long.
    bounds = [np.full(BLOCK, code - zero, np.float32) for code in (first_code, last_code)]
    work = np.empty(BLOCK, np.float32)
    total = 0.0
    for first, last, block in _cut(cells):
        flat = block.reshape(-1)
        size = len(flat)
        found = work[:size]
        with np.errstate(over="ignore"):  # what overflows is clipped below
            np.divide(flat, scale, out=found)
        np.rint(found, out=found)
        if clips[0]:
            np.maximum(found, bounds[0][:size], out=found)
        if clips[1]:
            np.minimum(found, bounds[1][:size], out=found)
        np.multiply(found, scale, out=found)
        np.subtract(found, flat, out=found)
        total += float(_energy(found.reshape(block.shape)) @ weight[first:last])
    return total


def _cut(cells: NDArray[np.float32]) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Cut values [before, channels, behind] into pieces that the cache holds, with their channels.

    Pieces are contiguous and have at most `BLOCK` elements.
    """
    before, channels, behind = cells.shape
    if channels * behind <= BLOCK:
        step = max(1, BLOCK // max(channels * behind, 1))
        for i in range(0, before, step):
            yield 0, channels, cells[i : i + step]
        return
    step = max(1, BLOCK // behind)
    for row in cells:
        for i in range(0, channels, step):
            rows = row[i : i + step]
            for j in range(0, behind, BLOCK):
                yield i, i + len(rows), rows[None, :, j : j + BLOCK]


def _energy(block: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum of squares of each channel of a piece, float64 [channels]."""
    # Where channels are rows already, einsum is quicker if it is told so.
    rows = block[0]
    sums = np.einsum("bc,bc->b", rows, rows) if len(block) == 1 else _columns(block)
    if np.isfinite(sums).all():
        return sums.astype(np.float64)
    return _columns(block.astype(np.float64))


def _columns(block: NDArray[np.floating]) -> NDArray[Any]:
    return np.asarray(np.einsum("abc,abc->b", block, block))
