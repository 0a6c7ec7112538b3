"""What is wrong with a unit in integers: functions on arrays, each with its threshold.

The thresholds are those where the cause explains most of a unit's error, not a paper's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import INTEGERS, Encoding, dequantize, quantize

Floats = NDArray[np.floating]

# A channel this many times as wide as the median one leaves the median one few codes.
OUTLIER = 8.0
# Share of the error that values outside of the range make.
CLIPPED = 0.5
# Share of values that lie in the two codes of one end.
TAIL = 0.9
TAILED = ("Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Exp")


@dataclass(frozen=True)
class Cause:
    """One thing that is wrong.

    Attributes:
        kind: `outlier channel`, `saturated range`, `depthwise weights`, `tail`, `weights` or
            `activations`.
        what: In words, with numbers.
        fix: What may help, as an option.
    """

    kind: str
    what: str
    fix: str


def channel_ranges(x: Floats, axis: int) -> NDArray[np.float64]:
    """Return each channel's largest magnitude, [channels]."""
    others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    found: NDArray[np.float64] = np.abs(x).max(axis=others).astype(np.float64)
    return found


def outlier_channel(name: str, x: Floats, axis: int, encoding: Encoding) -> Cause | None:
    """Tell a channel that is far wider than the others, where all share one scale.

    Args:
        name: Of the tensor.
        x: Its values.
        axis: Of its channels.
        encoding: Its encoding.
    """
    if x.ndim < 2 or encoding.scale.size > 1 or x.shape[axis] < 4:
        return None
    ranges = channel_ranges(x, axis)
    median = float(np.median(ranges[ranges > 0])) if (ranges > 0).any() else 0.0
    worst = int(ranges.argmax())
    if not median or ranges[worst] < OUTLIER * median:
        return None
    return Cause(
        "outlier channel",
        f"channel {worst} of {name} reaches {ranges[worst]:.3g}, the median channel {median:.3g}: "
        f"one scale for all leaves most channels {2 * median / float(encoding.scale):.0f} codes",
        "--set smooth.enabled=true for MatMul, --set equalize_layers.enabled=true for Conv",
    )


def errors(x: Floats, encoding: Encoding) -> tuple[float, float, float]:
    """Return the energies of rounding and of clipping, and the share of values clipped."""
    if not x.size:
        return 0.0, 0.0, 0.0
    wide = x.astype(np.float64)
    found = (dequantize(quantize(x, encoding), encoding) - wide) ** 2
    scale, zero = (np.asarray(each, np.float64) for each in (encoding.scale, encoding.zero_point))
    least, most = INTEGERS[encoding.dtype][:2]
    if encoding.scale.ndim:  # one a channel: none of the activations have it
        return float(found.sum()), 0.0, 0.0
    outside = (wide < (least - zero - 0.5) * scale) | (wide > (most - zero + 0.5) * scale)
    return float(found[~outside].sum()), float(found[outside].sum()), float(outside.mean())


def saturated_range(name: str, x: Floats, encoding: Encoding) -> Cause | None:
    """Tell values outside of the range that make most of the error."""
    rounding, clipping, share = errors(x, encoding)
    if not clipping or clipping < CLIPPED * (rounding + clipping):
        return None
    return Cause(
        "saturated range",
        f"{share:.2%} of {name} lie outside of its range and make "
        f"{clipping / (rounding + clipping):.0%} of its error",
        "--set calibrate.observer=minmax, or more calibration data",
    )


def tail(name: str, op_type: str, x: Floats, encoding: Encoding) -> Cause | None:
    """Tell a Softmax or Sigmoid whose values crowd into the codes of one end."""
    if op_type not in TAILED or not x.size or encoding.scale.size > 1:
        return None
    codes = quantize(x, encoding).astype(np.int64)
    for end, near in (("lowest", codes - codes.min()), ("highest", codes.max() - codes)):
        share = float((near <= 1).mean())
        if share >= TAIL:
            return Cause(
                "tail",
                f"{share:.1%} of {name}, a {op_type}'s result, share the two {end} codes",
                "leave it in float",
            )
    return None


def depthwise(name: str, weight: Floats, codes: Floats, groups: int) -> Cause | None:
    """Tell a depthwise convolution whose weights lose more than one percent.

    Args:
        name: Of the node.
        weight: Its weight, [M, C / groups, ...].
        codes: The values of its codes.
        groups: The attribute `group`.
    """
    if groups < 2 or groups != weight.shape[0]:
        return None
    lost = relative_error(weight, codes)
    if lost < 1e-2:
        return None
    ranges = channel_ranges(weight, 0)
    positive = ranges[ranges > 0]
    return Cause(
        "depthwise weights",
        f"{name} is depthwise: {lost:.1%} of its weights' energy is lost; its channels' ranges "
        f"differ by {positive.max() / positive.min():.0f} times",
        "--set equalize_depthwise.enabled=true, --set adaround.enabled=true",
    )


def relative_error(x: Floats, codes: Floats) -> float:
    """Return the error's energy by the signal's."""
    wide = x.astype(np.float64)
    signal = float((wide**2).sum())
    return float(((codes - wide) ** 2).sum()) / signal if signal else 0.0


def dominant(
    weight: float, activation: float, label: Callable[[float], str] = "{:.2%}".format
) -> Cause:
    """Say which operand loses more, where nothing else is found."""
    if weight > activation:
        return Cause(
            "weights",
            f"weights lose {label(weight)} of their energy, activations {label(activation)}",
            "--set adaround.enabled=true",
        )
    return Cause(
        "activations",
        f"activations lose {label(activation)} of their energy, weights {label(weight)}",
        "--set calibrate.observer=mse",
    )
