"""Which scale and zero point a group of weights gets, and the codes that follow from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.arrays import beside, host
from qgraph.encoding import INTEGERS, SMALLEST_SCALE, Encoding, Spec, encode_range, expand
from qgraph.errors import UsageError

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class RangeSearch:
    """How the range of a group is chosen.

    Attributes:
        shares: Shares of the group's full range that are tried; the first wins ties.
        norm: Power of the absolute error whose sum decides; 2 is the squared error. 2.4 is what
            Frantar et al. 2022 (GPTQ, arXiv 2210.17323) use in their published code.
        signed: For symmetric specs, also tries scale = x / -8 at 4 bits, where x is the weight of
            largest magnitude, and its negative: then the weight on one side uses the lowest code,
            which scale = |x| / 7 leaves idle. onnxruntime's symmetric MatMulNBits weights are
            x / -8. The scale may come out negative, which TensorRT does not take.
    """

    shares: tuple[float, ...] = (1.0,)
    norm: float = 2.0
    signed: bool = False


# From all of the range to half of it.
SHARES = tuple(percent / 100 for percent in range(100, 48, -2))
FULL = RangeSearch()
SQUARED = RangeSearch(SHARES)
CLIPPED = RangeSearch(SHARES, norm=2.4)


def groups(spec: Spec, rows: int) -> Iterator[tuple[int, int]]:
    """Yield the row ranges of a [K, N] weight whose weights share one scale in a column.

    Raises:
        UsageError: The spec's scales are not per tensor, per column or per block of rows.
    """
    if spec.axis is None or (spec.axis == 1 and spec.block == 0):
        yield 0, rows
        return
    if spec.axis != 0 or spec.block < 1:
        raise UsageError(
            f"weights [K, N] with axis={spec.axis}, block={spec.block}",
            fix="use axis=None (per tensor), axis=1 (per column), or axis=0 with a block of rows",
        )
    for start in range(0, rows, spec.block):
        yield start, min(start + spec.block, rows)


def block_shape(spec: Spec) -> tuple[int, ...]:
    """Return `Encoding.block` of a [K, N] weight with this spec."""
    if spec.axis is None:
        return ()
    return (0, 1) if spec.block == 0 else (spec.block, 1)


def working(weight: NDArray[Any]) -> Floats:
    """Return the weight as float32, or as float64 where it is that."""
    return weight.astype(np.result_type(weight.dtype, np.float32), copy=False)


def snap(
    values: Floats, scale: Floats, zero: NDArray[Any], spec: Spec, out: Floats | None = None
) -> Floats:
    """Round `values` to whole steps, code minus zero point, inside the codes that `spec` has.

    Args:
        values: float [g, N] or [N].
        scale: [N] or broadcastable, of the values' type, so that float32 values are divided in
            float32 as ONNX's QuantizeLinear does.
        zero: Zero points, same shape as `scale`.
        spec: Gives the lowest and highest code.
        out: Array for the result.
    """
    first, last = spec.codes()
    steps: Floats = np.divide(values, scale, out=out)
    np.rint(steps, out=steps)
    # Faster than np.clip, most of all on short rows.
    np.maximum(steps, np.subtract(first, zero).astype(steps.dtype), out=steps)
    np.minimum(steps, np.subtract(last, zero).astype(steps.dtype), out=steps)
    return steps


def candidates(
    low: Floats, high: Floats, spec: Spec, search: RangeSearch
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the scales and zero points to try, both [C, N].

    Args:
        low: Least weight of each column, [N].
        high: Greatest weight, [N].
        spec: Codes and symmetry.
        search: Which shares and signs.
    """
    share = np.asarray(search.shares)[:, None]
    # Zero is always inside, so that a narrowed range never has low > high.
    low = np.minimum(low.astype(np.float64), 0.0)
    high = np.maximum(high.astype(np.float64), 0.0)
    plain = encode_range(low * share, high * share, spec)
    if not (search.signed and spec.symmetric):
        return plain.scale, plain.zero_point
    first, last = spec.codes()
    middle = (first + last + 1) // 2 if first >= 0 else 0
    peak = np.where(-low >= high, low, high)
    unit = np.where(peak == 0, 1.0, peak) / (first - middle)
    scale = np.copysign(np.maximum(np.abs(unit * share), SMALLEST_SCALE), unit).astype(np.float32)
    if len(search.shares) > 1:
        scale = np.concatenate([scale, -scale, plain.scale])
    return scale, np.full(scale.shape, middle, np.int64)


def choose(
    values: Floats, spec: Spec, search: RangeSearch, importance: Floats | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scale and zero point of each column, [N], for weights that share them down a column.

    Args:
        values: float [g, N].
        spec: Codes and symmetry; its granularity is not looked at.
        search: How.
        importance: [g], a factor on each row's error; or [g, g], the rows' Gram matrix H: then
            e^T H e of each column's error e decides, whatever the norm.
    """
    if not len(values):
        values = np.zeros_like(values, shape=(1, values.shape[1]))
    scales, zeros = candidates(host(values.min(axis=0)), host(values.max(axis=0)), spec, search)
    scale, zero = scales[0], zeros[0]
    if len(scales) == 1:
        return scale, zero
    weights = None if importance is None else importance.astype(values.dtype)
    least = np.full(values.shape[1], np.inf, values.dtype)
    # One array for all candidates: they would spend their time on getting memory.
    error = np.empty_like(values)
    for tried, at in zip(scales, zeros, strict=True):
        step = beside(values, tried.astype(values.dtype))
        snap(values, step, beside(values, at), spec, out=error)
        error *= step
        error -= values
        # Weights near the end of float32's range may overflow to infinity, which never wins.
        with np.errstate(over="ignore"):
            errors = host(_power_sums(error, search.norm, weights))
        better = errors < least
        least = np.where(better, errors, least)
        scale, zero = np.where(better, tried, scale), np.where(better, at, zero)
    return scale, zero


def _power_sums(error: Floats, norm: float, weights: Floats | None) -> Floats:
    """Column sums of |error| ** norm, or e^T H e; `error` is overwritten."""
    if weights is not None and weights.ndim == 2:
        products = weights @ error
        products *= error
        quadratic: Floats = products.sum(axis=0)
        return quadratic
    if norm == 2:
        np.square(error, out=error)
    else:
        np.abs(error, out=error)
        np.power(error, error.dtype.type(norm), out=error)
    sums: Floats = error.sum(axis=0) if weights is None else weights @ error
    return sums


def fit(
    weight: Floats, spec: Spec, search: RangeSearch = FULL, importance: Floats | None = None
) -> Encoding:
    """Choose the encoding of a whole weight.

    Args:
        weight: float [K, N], output channels last.
        spec: Codes, symmetry and granularity: per tensor, per column (axis 1), or per block of
            rows (axis 0 with a block); the last block may be shorter.
        search: How each group's range is chosen.
        importance: [K], a factor on each row's error, or the Gram matrix [K, K], of which each
            group of rows takes its own block; one scale for all weights takes its diagonal.

    Raises:
        UsageError: The spec has another granularity.
        ValueError: The weight is not finite.
    """
    values = working(weight)
    if spec.axis is None:
        list(groups(spec, len(values)))
        if importance is not None:
            rows = np.diag(importance) if importance.ndim == 2 else importance
            importance = np.repeat(rows, values.shape[1])
        scale, zero = choose(values.reshape(-1, 1), spec, search, importance)
        return Encoding(spec.dtype, scale[0], zero[0], ())
    found = [
        choose(values[a:b], spec, search, _of_rows(importance, a, b))
        for a, b in groups(spec, len(values))
    ]
    scales, zeros = zip(*found, strict=True)
    return Encoding(spec.dtype, np.stack(scales), np.stack(zeros), block_shape(spec))


def _of_rows(importance: Floats | None, start: int, stop: int) -> Floats | None:
    if importance is None or importance.ndim == 1:
        return None if importance is None else importance[start:stop]
    return importance[start:stop, start:stop]


def simulate(
    weight: Floats, spec: Spec, search: RangeSearch = FULL, importance: Floats | None = None
) -> Floats:
    """Return the weight rounded to nearest, as floats: `fit` and `round_to` without codes."""
    values = working(weight)
    result = np.empty_like(values)
    if spec.axis is None:
        encoding = fit(values, spec, search, importance)
        scale = encoding.scale.astype(values.dtype)
        result[...] = snap(values, scale, encoding.zero_point, spec) * scale
        return result
    for start, stop in groups(spec, len(values)):
        rows = values[start:stop]
        scale, zero = choose(rows, spec, search, _of_rows(importance, start, stop))
        step = beside(values, scale.astype(values.dtype))
        np.multiply(snap(rows, step, beside(values, zero), spec), step, out=result[start:stop])
    return result


def round_to(weight: Floats, encoding: Encoding, spec: Spec) -> NDArray[np.generic]:
    """Return the nearest codes that the spec allows, [K, N].

    `qgraph.encoding.quantize` would also use the lowest code of a narrow spec, which a weight
    beyond a narrowed range reaches.
    """
    values = working(weight)
    scale = expand(encoding.scale, encoding.block, values.shape).astype(values.dtype, copy=False)
    zero = beside(values, expand(encoding.zero_point, encoding.block, values.shape))
    return codes_of(snap(values, beside(values, scale), zero, spec) + zero, spec)


def codes_of(numbers: NDArray[Any], spec: Spec) -> NDArray[np.generic]:
    """Return whole numbers as an array of the spec's integer type."""
    codes: NDArray[np.generic] = host(numbers.astype(np.int32)).astype(INTEGERS[spec.dtype][2])
    return codes
