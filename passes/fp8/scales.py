"""Scales for float8e4m3fn: powers of two, which change no digit of what they multiply."""

import math

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import FLOATS, Encoding, dequantize, quantize

DTYPE = "float8e4m3fn"
LARGEST = FLOATS[DTYPE][0]
# Of float32's normal numbers; the inverse of a scale is one of them too.
_LOWEST, _HIGHEST = -126, 118


def power_of_two(largest: float) -> float:
    """Return the least power of two s so that `largest` / s has a code; 1 where all is 0."""
    if largest <= 0:
        return 1.0
    mantissa, exponent = math.frexp(largest / LARGEST)
    exponent -= mantissa == 0.5  # a power of two itself
    return math.ldexp(1.0, min(max(exponent, _LOWEST), _HIGHEST))


def encoding(scale: float) -> Encoding:
    """Return codes in steps of one scale a tensor."""
    return Encoding(DTYPE, np.array(scale, np.float32), np.array(0, np.int64))


def rounding_error(values: NDArray[np.floating], scale: float) -> float:
    """Return the squared error of rounding to codes, relative to the squared size; 0 for zeros."""
    taken = encoding(scale)
    size = float(np.square(values, dtype=np.float64).sum())
    off = values - dequantize(quantize(values, taken), taken)
    return float(np.square(off, dtype=np.float64).sum()) / size if size > 0 else 0.0


def needs_scale(
    rows: NDArray[np.floating], largest: float, *, headroom: float, tolerance: float
) -> float:
    """Return by what to divide values before they are cast; 1 where a cast alone will do.

    Floating-point codes are as exact at every magnitude from 2^-6 to 448. So a scale wins something
    only where values exceed that, or where those below it, whose steps do not shrink further, make
    up much of the tensor.

    Args:
        rows: Some of the values.
        largest: Largest magnitude of all of them.
        headroom: How much larger others may get.
        tolerance: By what share the squared error may exceed that with the best scale.
    """
    best = power_of_two(largest * headroom)
    if best > 1:
        return best
    error = rounding_error(rows, 1.0)
    return 1.0 if error <= (1 + tolerance) * rounding_error(rows, best) else best
