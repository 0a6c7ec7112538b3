"""BatchNormalization in front of a Conv folds into it where padding allows."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.passes.fusions._affine import LOSSY, Affine, batchnorm, bias_of
from qgraph.passes.fusions._constants import EPSILON, constant, folded, rounded, scaled
from qgraph.pattern import Match, Pattern, maybe, op, var
from qgraph.pipeline import Fusion, Reject

# Rounding of the weights shows in the output times |mean| / deviation: at most this is let through,
# in float32; types with fewer digits get the smallest useful bound instead.
_MAX_ERROR = 1e-4
_MIN_RATIO = 8.0


@dataclass(frozen=True)
class BatchNormConv(Fusion):
    """Fold BatchNormalization into the weight and bias of the Conv behind it.

    Before:
        y = BatchNormalization <epsilon> (x, scale, shift, mean, variance)
        z = Conv <pads = [0, 0, 0, 0]> (y, weight, bias)

    After:
        z = Conv <pads = [0, 0, 0, 0]> (x, weight_folded, bias_folded)

        where factor = scale / sqrt(variance + epsilon) and offset = shift - mean * factor, one
        value an input channel, weight_folded = weight * factor and bias_folded = bias + the sum
        of weight * offset over input channels and kernel.

    When:
        The convolution does not pad, or offset is zero in every channel: padding happens after
        the BatchNormalization, so padded elements do not get the offset. Any rank, any groups,
        constant weight, bias and statistics.

    Leaves alone:
        A padding Conv with an offset; auto_pad SAME with a kernel wider than one element;
        training mode; parameters that are computed; a BatchNormalization with a second reader;
        |mean| so far above the standard deviation that subtracting it only after the product
        would cost more than 1e-4 (in 16-bit types, more than 8 deviations); ConvTranspose, where
        an offset does not reach every output equally often.

    Numerics:
        Exact up to rounding: computed in float64, rounded once to the weight's type.

    Source:
        https://onnx.ai/onnx/operators/onnx__BatchNormalization.html and
        https://onnx.ai/onnx/operators/onnx__Conv.html (pads are zeros added to the input).
    """

    name: ClassVar[str] = "batchnorm_conv"
    pattern: ClassVar[Pattern] = op.Conv(
        op.BatchNormalization(
            var("x"), var("scale"), var("shift"), var("mean"), var("variance"), bind="bn"
        ),
        var("weight"),
        maybe("bias"),
    )

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Fold the statistics into the Conv in place."""
        conv, bn, weight_value = m.root, m.node("bn"), m.value("weight")
        weight = constant(graph, weight_value)
        if weight is None:
            return Reject("the convolution's weight is not a constant")
        groups = int(graph.attribute(conv, "group", 1))
        affine = batchnorm(graph, bn, weight.shape[1] * groups)
        if isinstance(affine, Reject):
            return affine
        if affine.shift.any() and _pads(graph, conv, weight):
            return Reject("the convolution pads, and padding would not get the shift")
        if affine.shift.any() and _cancels(graph, bn, weight.dtype):
            return Reject("the mean is too far above the standard deviation to subtract it later")
        bias = bias_of(graph, m.values.get("bias"), len(weight))
        if isinstance(bias, Reject):
            return bias
        new_bias = rounded(bias + _reach(weight, affine, groups), weight.dtype)
        new_weight = scaled(weight, _spread(affine.factor, weight, groups))
        if new_bias is None or new_weight is None:
            return Reject(LOSSY.format(weight.dtype))
        graph.set_input(conv, 0, m.value("x"))
        graph.set_input(conv, 1, folded(graph, weight_value, new_weight))
        if "bias" in m or new_bias.any():
            old = m.values.get("bias", weight_value)
            graph.set_input(conv, 2, folded(graph, old, new_bias))
        return None


def _spread(values: NDArray[np.float64], weight: NDArray[Any], groups: int) -> NDArray[np.float64]:
    """Lay out one value an input channel [C] as [M, C/g, 1...], beside a weight [M, C/g, k...]."""
    by_group = np.repeat(values.reshape(groups, -1), len(weight) // groups, axis=0)
    return by_group.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))


def _reach(weight: NDArray[Any], affine: Affine, groups: int) -> NDArray[np.float64]:
    """What a constant offset on the inputs adds to each output channel [M]."""
    taps = weight.astype(np.float64).sum(axis=tuple(range(2, weight.ndim)))
    total = (taps * _spread(affine.shift, taps, groups)).sum(axis=1)
    return np.asarray(total, np.float64)


def _pads(graph: Graph, conv: Node, weight: NDArray[Any]) -> bool:
    auto = graph.attribute(conv, "auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return any(k != 1 for k in weight.shape[2:])
    return auto != "VALID" and any(graph.attribute(conv, "pads", ()))


def _cancels(graph: Graph, bn: Node, dtype: np.dtype[Any]) -> bool:
    mean, variance = (constant(graph, value) for value in bn.inputs[3:5])
    assert mean is not None and variance is not None  # batchnorm() read them
    epsilon = float(graph.attribute(bn, "epsilon", 1e-5))
    ratio = np.abs(mean.astype(np.float64)) / np.sqrt(variance.astype(np.float64) + epsilon)
    limit = max(_MIN_RATIO, _MAX_ERROR / EPSILON[dtype])
    return bool(ratio.max(initial=0.0) > limit)
