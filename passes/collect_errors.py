"""The error that candidate encodings make on a tensor, as its readers will feel it."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import INTEGERS, Encoding
from qgraph.graph import Graph, Node, Value

# Added to every error, as a share of the signal: 120 dB down, so that a perfect sample, whose
# logarithm would be infinite, is merely very good.
FLOOR = 1e-12


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
        x: One sample's values, any shape.
        encodings: Candidates for the whole tensor, by name.
        weights: Axis and weight of each channel, as from `channel_weights`; None for equal ones.
    """
    values = np.ascontiguousarray(x, np.float32)
    if weights is None or not -values.ndim <= weights[0] < values.ndim:
        weights = (0, np.ones(1))
        values = values.reshape(1, -1)
    axis, weight = weights
    rows = np.moveaxis(values, axis, 0).reshape(len(weight), -1)
    signal = float(_energy(rows) @ weight)
    least = max(FLOOR * signal, float(np.finfo(np.float64).tiny))
    errors = {}
    for name, encoding in encodings.items():
        first, last, _ = INTEGERS[encoding.dtype]
        zero = int(encoding.zero_point)
        with np.errstate(over="ignore"):  # what overflows is clipped below
            found = rows / encoding.scale
        np.rint(found, out=found)
        np.clip(found, first - zero, last - zero, out=found)
        found *= encoding.scale
        found -= rows
        errors[name] = float(_energy(found) @ weight) + least
    return errors


def _energy(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum of squares of each row, float64 [rows]."""
    sums: NDArray[np.float64] = np.einsum(
        "ij,ij->i", rows, rows, dtype=np.float64, casting="unsafe"
    )
    return sums
