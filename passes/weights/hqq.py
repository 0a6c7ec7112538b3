"""HQQ: zero points that leave the errors few and large, found without data.

For each group, with u = weight / scale and q its codes,

    minimise over z and e: sum |e|^p + beta / 2 * (u - (q - z) - e)^2,  p < 1,

in turns: q = round(u + z); e = sign(d) * max(0, |d| - |d|^(p - 1) / beta) of d = u - (q - z);
z = mean(q - u + e); beta grows. Errors are counted in steps of the scale, not in the weight's
unit, so that the result does not depend on how large the weights are.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import INTEGERS, Encoding, Spec, dequantize
from qgraph.errors import UsageError
from qgraph.passes.weights.grid import (
    FULL,
    Floats,
    RangeSearch,
    block_shape,
    choose,
    fit,
    groups,
    round_to,
    working,
)
from qgraph.passes.weights.loss import relative_loss
from qgraph.passes.weights.results import FloatZero

POWER = 0.7
BETA, GROWTH = 10.0, 1.01
TURNS = 20


def hqq(
    weight: NDArray[np.floating], spec: Spec, gram: NDArray[np.floating] | None = None
) -> tuple[NDArray[np.generic], Encoding, float]:
    """Quantize with optimised whole zero points.

    A group's zero point is the whole number next to the optimised one, or round to nearest's own,
    whichever has the least sum of |error|^p.

    Args:
        weight: float [K, N], output channels last.
        spec: Asymmetric; per column (axis 1) or in blocks of rows (axis 0).
        gram: X^T X, float [K, K]; used for the loss alone.

    Returns:
        codes [K, N], their encoding, and the loss as `round_to_nearest` gives it.

    Raises:
        UsageError: The spec is symmetric or has another granularity.

    Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models",
        https://mobiusml.github.io/hqq_blog/.
    """
    _refuse(spec)
    plain = fit(weight, spec)
    values = working(weight)
    first, last = spec.codes()
    zeros = []
    for index, (start, stop) in enumerate(groups(spec, len(values))):
        u = values[start:stop] / plain.scale[index].astype(values.dtype)
        best = plain.zero_point[index].astype(values.dtype)
        float_zero = _zero(u, best, first, last)
        least = _objective(u, best, first, last)
        for tried in (np.floor(float_zero), np.ceil(float_zero)):
            tried = np.clip(tried, first, last)
            found = _objective(u, tried, first, last)
            best, least = np.where(found < least, tried, best), np.minimum(found, least)
        zeros.append(best.astype(np.int64))
    encoding = replace(plain, zero_point=np.stack(zeros))
    codes = round_to(values, encoding, spec)
    return codes, encoding, relative_loss(weight, dequantize(codes, encoding), gram)


def hqq_float(
    weight: NDArray[np.floating],
    spec: Spec,
    gram: NDArray[np.floating] | None = None,
    *,
    search: RangeSearch = FULL,
) -> FloatZero:
    """Quantize with optimised zero points that are kept as floats, as HQQ itself does.

    Args:
        weight: float [K, N], output channels last.
        spec: Asymmetric, at most 8 bits; per column (axis 1) or in blocks of rows (axis 0).
        gram: X^T X, float [K, K]; used for the loss alone.
        search: How each group's scale is chosen before its zero point is optimised.

    Returns:
        Codes and float zero points. Codes are counted from 0, also for a signed type.

    Raises:
        UsageError: The spec is symmetric or has another granularity.
    """
    _refuse(spec)
    values = working(weight)
    first, last = spec.codes()
    scales, zeros = [], []
    codes = np.empty(values.shape, np.uint8)
    for start, stop in groups(spec, len(values)):
        group = values[start:stop]
        scale, whole = choose(group, spec, search)
        u = group / scale.astype(values.dtype)
        zero = _zero(u, whole.astype(values.dtype), first, last)
        codes[start:stop] = np.clip(np.rint(u + zero), first, last) - first
        scales.append(scale)
        zeros.append((zero - first).astype(np.float32))
    width = (INTEGERS[spec.dtype][1] - INTEGERS[spec.dtype][0]).bit_length()
    scale_of, zero_of = np.stack(scales), np.stack(zeros)
    result = FloatZero(codes, scale_of, zero_of, block_shape(spec), width)
    return replace(result, loss=relative_loss(weight, result.dequantize(), gram))


def _refuse(spec: Spec) -> None:
    if spec.symmetric:
        raise UsageError("hqq with a symmetric spec", fix="use an asymmetric one, or clipped")
    if spec.axis is None:
        raise UsageError("hqq with one scale for all weights", fix="use axis=1 or axis=0 blocks")


def _zero(u: Floats, zero: Floats, first: int, last: int) -> Floats:
    """Return the best zero points [N] met on the way, by sum |error|^p."""
    best, least = zero, _objective(u, zero, first, last)
    beta = BETA
    for _ in range(TURNS):
        codes = np.clip(np.rint(u + zero), first, last)
        error = u - codes + zero
        size = np.abs(error)
        # Where the error is 0 the shrunk one is 0 too; 0^(p - 1) would be infinite.
        shrunk = size - np.power(size, POWER - 1, out=np.zeros_like(size), where=size > 0) / beta
        kept = np.copysign(np.maximum(shrunk, 0), error)
        zero = np.mean(codes - u + kept, axis=0)
        found = _objective(u, zero, first, last)
        best, least = np.where(found < least, zero, best), np.minimum(found, least)
        beta *= GROWTH
    return best


def _objective(u: Floats, zero: Floats, first: int, last: int) -> Floats:
    """Sum of |error|^p of each column, errors in steps."""
    codes = np.clip(np.rint(u + zero), first, last)
    sums: Floats = np.power(np.abs(u - codes + zero), POWER).sum(axis=0)
    return sums
