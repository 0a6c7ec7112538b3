"""The error that candidate encodings make on a tensor, as its readers will feel it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import INTEGERS, Encoding
from qgraph.graph import Graph, Node, Value
from qgraph.passes.collect import Timing
from qgraph.passes.collect_values import Feeds, Progress, watch
from qgraph.passes.observers.sampling import ENOUGH, stride

# Added to every error, as a share of the signal: 120 dB down, so that a perfect sample, whose
# logarithm would be infinite, is merely very good.
FLOOR = 1e-12
# By value and candidate, one error a sample.
Errors = dict[str, dict[str, list[float]]]
Weights = Mapping[str, tuple[int, NDArray[np.float64]] | None]


def candidate_errors(
    graph: Graph,
    data: Iterable[Feeds],
    candidates: Mapping[str, Mapping[str, Encoding]],
    weights: Weights,
    *,
    memory: int,
    progress: Progress = lambda *_: None,
    first: int = 0,
) -> tuple[Timing, Errors]:
    """Run `graph` on samples and measure each candidate's error on each, in any order.

    Args:
        graph: Float graph.
        data: Samples; those in which a value is empty have no error for it.
        candidates: Encodings of each value, by name.
        weights: Of each value's channels, as from `channel_weights`.
        memory: Bytes for observed values.
        progress: Told how it goes.
        first: Number of the first sample.
    """
    errors: Errors = {name: {key: [] for key in each} for name, each in candidates.items()}

    def judge(_: int, name: str, value: NDArray[np.floating]) -> None:
        if value.size:
            for key, error in encoding_errors(value, candidates[name], weights[name]).items():
                errors[name][key].append(error)

    names = list(candidates)
    options: dict[str, Any] = {"memory": memory, "progress": progress, "first": first}
    return watch(graph, names, data, judge, label="choosing", **options), errors


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

    Of a large tensor, positions are left out, the same in each channel: about `ENOUGH` elements
    are looked at.

    Args:
        x: One sample's values, any shape but empty.
        encodings: Candidates for the whole tensor, by name; equal ones are computed once.
        weights: Axis and weight of each channel, as from `channel_weights`; None for equal ones.
    """
    values = np.asarray(x, np.float32)
    if weights is None or not -values.ndim <= weights[0] < values.ndim:
        weights = (0, np.ones(1))
        values = values.reshape(1, -1)
    axis, weight = weights[0] % values.ndim, weights[1]
    cells = _spread(values.reshape(math.prod(values.shape[:axis]), len(weight), -1))
    least = max(FLOOR * float(_energy(cells) @ weight), float(np.finfo(np.float32).tiny))
    errors: dict[str, float] = {}
    known: dict[tuple[str, float, int], float] = {}
    for name, encoding in encodings.items():
        key = (encoding.dtype, float(encoding.scale), int(encoding.zero_point))
        if key not in known:
            known[key] = float(_energy(_error(cells, encoding)) @ weight) + least
        errors[name] = known[key]
    return errors


def _spread(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Leave positions of a large tensor [before, channels, behind] out."""
    before, channels, behind = cells.shape
    if cells.size > ENOUGH and behind > before:
        cells = cells[:, :, :: stride(behind, max(1, ENOUGH // (before * channels)))]
    elif cells.size > ENOUGH:
        cells = cells[:: stride(before, max(1, ENOUGH // (channels * behind)))]
    return np.ascontiguousarray(cells)


def _error(cells: NDArray[np.float32], encoding: Encoding) -> NDArray[np.float32]:
    """What each value, encoded and back, is off."""
    first, last, _ = INTEGERS[encoding.dtype]
    zero = int(encoding.zero_point)
    with np.errstate(over="ignore"):  # what overflows is clipped below
        found = cells / encoding.scale
    np.rint(found, out=found)
    np.clip(found, first - zero, last - zero, out=found)
    np.multiply(found, encoding.scale, out=found)
    np.subtract(found, cells, out=found)
    return found


def _energy(cells: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum of squares of each channel of values [before, channels, behind], float64 [channels]."""
    # Where channels are rows already, einsum is quicker if it is told so.
    rows = cells[0]
    sums = np.einsum("bc,bc->b", rows, rows) if len(cells) == 1 else _columns(cells)
    if np.isfinite(sums).all():
        return sums.astype(np.float64)
    return _columns(cells.astype(np.float64))


def _columns(cells: NDArray[np.floating]) -> NDArray[Any]:
    return np.asarray(np.einsum("abc,abc->b", cells, cells))
