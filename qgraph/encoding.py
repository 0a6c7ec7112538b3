"""The only quantization arithmetic: specs (wishes), encodings (numbers), codes.

The arithmetic is that of ONNX's QuantizeLinear and DequantizeLinear
(https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html): codes = saturate(round(x / scale) +
zero point), rounding half to even. Codes in 8-bit floating point are rounded to its own steps and
have no zero point (https://onnx.ai/onnx/technical/float8.html).
"""

from dataclasses import dataclass
from typing import TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

_Number = TypeVar("_Number", bound=np.generic)

# Lowest and highest code, and the array type that holds the codes. numpy has no 3-bit type.
INTEGERS: dict[str, tuple[int, int, np.dtype]] = {
    "int2": (-2, 1, np.dtype(ml_dtypes.int2)),
    "uint2": (0, 3, np.dtype(ml_dtypes.uint2)),
    "int3": (-4, 3, np.dtype(np.int8)),
    "uint3": (0, 7, np.dtype(np.uint8)),
    "int4": (-8, 7, np.dtype(ml_dtypes.int4)),
    "uint4": (0, 15, np.dtype(ml_dtypes.uint4)),
    "int8": (-128, 127, np.dtype(np.int8)),
    "uint8": (0, 255, np.dtype(np.uint8)),
    "int16": (-32768, 32767, np.dtype(np.int16)),
    "uint16": (0, 65535, np.dtype(np.uint16)),
    "int32": (-(2**31), 2**31 - 1, np.dtype(np.int32)),
}

# Largest finite code, and the array type, of codes in floating point. They saturate: e4m3fn has no
# infinity, and what ml_dtypes can't hold becomes NaN.
FLOATS: dict[str, tuple[float, np.dtype]] = {
    "float8e4m3fn": (448.0, np.dtype(ml_dtypes.float8_e4m3fn)),
}

# The smallest scale of such codes, float16's smallest normal number: models that compute in float16
# keep scales in it. Codes get smaller instead, which costs no digit down to 2^-6.
SMALLEST_FLOAT_SCALE = 2.0**-14

# The smallest scale an encoding may have. Below float32's smallest normal number engines flush
# to zero, and x / scale becomes infinite.
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
LARGEST_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Spec:
    """A wish: how a tensor should be quantized.

    Attributes:
        dtype: Name of the type, a key of `INTEGERS` or `FLOATS`.
        symmetric: Zero point fixed (0 for signed types), range taken as [-max|x|, max|x|].
        axis: Axis with one scale per index (per channel); None for one scale per tensor.
        block: With `axis`, how many consecutive indices share a scale; 0 for per channel.
        narrow: Leave out the lowest code (-128), so that the range is symmetric about zero.
    """

    dtype: str = "int8"
    symmetric: bool = True
    axis: int | None = None
    block: int = 0
    narrow: bool = False

    def codes(self) -> tuple[int, int]:
        """Lowest and highest code that this spec may use; of integers only."""
        low, high, _ = INTEGERS[self.dtype]
        return (low + 1 if self.narrow else low), high


@dataclass(frozen=True, eq=False)
class Encoding:
    """Numbers: what turns floats into codes and back.

    Attributes:
        dtype: Name of the type of the codes.
        scale: float32, shape () for one scale per tensor, else the tensor's rank with one entry
            a block along each axis.
        zero_point: int64, same shape as `scale`.
        block: Block length along each axis; () for one scale per tensor. 0 means the whole axis.
    """

    dtype: str
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    block: tuple[int, ...] = ()

    @property
    def axis(self) -> int | None:
        """The axis along which scales differ, or None for one scale per tensor.

        Raises:
            ValueError: Scales differ along more than one axis and none of the blocks is longer
                than 1, so ONNX's `axis` attribute can't express them.
        """
        if self.scale.ndim == 0:
            return None
        blocked = [i for i, b in enumerate(self.block) if b > 1]
        if len(blocked) == 1:
            return blocked[0]
        varying = [i for i, b in enumerate(self.block) if b == 1]
        if len(varying) > 1 or blocked:
            raise ValueError(f"block {self.block} has no single axis")
        return varying[0] if varying else 0

    def to_json(self) -> dict[str, object]:
        """Return plain lists, as they stand in an artifact's encodings file."""
        return {
            "dtype": self.dtype,
            "scale": self.scale.tolist(),
            "zero_point": self.zero_point.tolist(),
            "block": list(self.block),
        }


def encode_range(
    low: NDArray[np.floating] | np.floating | float,
    high: NDArray[np.floating] | np.floating | float,
    spec: Spec,
) -> Encoding:
    """Choose scale and zero point so that [low, high], widened to hold 0, is representable.

    Args:
        low: Smallest value, scalar or float [channels, broadcastable to the tensor].
        high: Largest value, same shape.
        spec: dtype and symmetry; the shape of `low` decides the granularity.

    Returns:
        Encoding with `scale` and `zero_point` of the shape of `low`. An all-zero range gets
        scale 1, so that zeros stay exactly zero.

    Raises:
        ValueError: A bound is not finite, or low > high.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", sections 2.1 and 3 (range includes zero, so that
        padding is exact).
    """
    lo = np.minimum(np.asarray(low, np.float64), 0.0)
    hi = np.maximum(np.asarray(high, np.float64), 0.0)
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        raise ValueError(f"range [{np.min(lo)}, {np.max(hi)}] is not finite")
    if np.any(np.asarray(low) > np.asarray(high)):
        raise ValueError("range has low > high")
    if spec.dtype in FLOATS:
        return _float_encoding(np.maximum(-lo, hi), spec.dtype)
    first, last = spec.codes()
    if spec.symmetric:
        middle = (first + last + 1) // 2 if first >= 0 else 0
        bound = np.maximum(-lo, hi)
        # For a full range the negative side has one code more; the positive side decides.
        scale = bound / (last - middle)
        zero = np.full(lo.shape, middle, np.int64)
    else:
        scale = (hi - lo) / (last - first)
        zero = np.zeros(lo.shape, np.int64)
    scale = np.where(hi - lo > 0, np.maximum(scale, SMALLEST_SCALE), 1.0)
    scale32 = scale.astype(np.float32)
    if not spec.symmetric:
        zero = np.clip(np.rint(first - lo / scale32), first, last).astype(np.int64)
    # At the end of float32's range the rounded scale times the last code would be infinite.
    steps = np.maximum(last - zero, zero - first)
    finite = np.nextafter((LARGEST_FLOAT / steps).astype(np.float32), np.float32(0))
    scale32 = np.minimum(scale32, finite)
    block = tuple(0 if n == 1 else 1 for n in lo.shape)
    return Encoding(spec.dtype, scale32, zero, block)


def _float_encoding(bound: NDArray[np.float64], dtype: str) -> Encoding:
    """Map magnitudes up to `bound`, unless they are tiny, to all of a floating-point type's codes."""
    largest = FLOATS[dtype][0]
    scale = np.where(bound > 0, np.maximum(bound / largest, SMALLEST_FLOAT_SCALE), 1.0)
    # The largest code must stay finite, as it might not with a scale that is rounded up.
    finite = np.nextafter(np.float32(LARGEST_FLOAT / largest), np.float32(0))
    scale32 = np.minimum(scale.astype(np.float32), finite)
    block = tuple(0 if n == 1 else 1 for n in bound.shape)
    return Encoding(dtype, scale32, np.zeros(bound.shape, np.int64), block)


def code_type(dtype: str) -> np.dtype:
    """Return the array type of codes."""
    return FLOATS[dtype][1] if dtype in FLOATS else INTEGERS[dtype][2]


def encode_array(weight: NDArray[np.floating], spec: Spec) -> Encoding:
    """Encode a constant from its own minimum and maximum.

    Args:
        weight: float, any shape.
        spec: dtype, symmetry, axis and block.

    Returns:
        Encoding per tensor, per channel of `spec.axis`, or per block along it (then with one
        scale for each index of every other axis, as ONNX's blocked DequantizeLinear wants).

    Raises:
        ValueError: `spec.axis` is out of range or the weight is not finite.
    """
    if spec.axis is None:
        return encode_range(float(weight.min(initial=0.0)), float(weight.max(initial=0.0)), spec)
    axis = spec.axis % weight.ndim if -weight.ndim <= spec.axis < weight.ndim else -1
    if axis < 0:
        raise ValueError(f"axis {spec.axis} is out of range for shape {weight.shape}")
    if spec.block == 0:
        others = tuple(i for i in range(weight.ndim) if i != axis)
        low = weight.min(axis=others, keepdims=True, initial=0.0)
        high = weight.max(axis=others, keepdims=True, initial=0.0)
        encoding = encode_range(low, high, spec)
        block = tuple(1 if i == axis else 0 for i in range(weight.ndim))
        return Encoding(spec.dtype, encoding.scale, encoding.zero_point, block)
    starts = np.arange(0, weight.shape[axis], spec.block)
    low = np.minimum.reduceat(weight, starts, axis=axis)
    high = np.maximum.reduceat(weight, starts, axis=axis)
    encoding = encode_range(low, high, spec)
    block = tuple(spec.block if i == axis else 1 for i in range(weight.ndim))
    return Encoding(spec.dtype, encoding.scale, encoding.zero_point, block)


def expand(
    values: NDArray[_Number], block: tuple[int, ...], shape: tuple[int, ...]
) -> NDArray[_Number]:
    """Repeat per-block values so that they broadcast against a tensor of `shape`."""
    for axis, length in enumerate(block):
        if length > 1:
            values = np.repeat(values, length, axis=axis)
            values = values[(slice(None),) * axis + (slice(shape[axis]),)]
    return values


def quantize(x: NDArray[np.floating], encoding: Encoding) -> NDArray[np.generic]:
    """Return the codes of `x`, in the encoding's type, same shape as `x`.

    Raises:
        ValueError: `x` has a NaN, which has no code.
    """
    if np.isnan(x).any():
        raise ValueError("NaN has no code")
    scale = expand(encoding.scale, encoding.block, x.shape)
    if encoding.dtype in FLOATS:
        largest, kind = FLOATS[encoding.dtype]
        with np.errstate(over="ignore"):
            ratio = np.asarray(x, np.float32) / scale
        rounded: NDArray[np.generic] = np.clip(ratio, -largest, largest).astype(kind)
        return rounded
    low, high, dtype = INTEGERS[encoding.dtype]
    zero = expand(encoding.zero_point, encoding.block, x.shape)
    # ONNX divides in the scale's type (float32); a wider division would round other ties.
    codes = np.rint(np.asarray(x, np.float32) / scale).astype(np.float64) + zero
    clipped: NDArray[np.generic] = np.clip(codes, low, high).astype(np.int64).astype(dtype)
    return clipped


def dequantize(codes: NDArray[np.generic], encoding: Encoding) -> NDArray[np.float32]:
    """Return float32 values of `codes`, same shape."""
    scale = expand(encoding.scale, encoding.block, codes.shape)
    if encoding.dtype in FLOATS:
        values: NDArray[np.float32] = codes.astype(np.float32) * scale
        return values
    zero = expand(encoding.zero_point, encoding.block, codes.shape)
    # Short codes differ from their zero points by less than 2^24, which float32 holds exactly.
    whole = np.int64 if codes.dtype.itemsize > 2 else np.float32
    steps = codes.astype(whole) - zero.astype(whole, copy=False)
    result: NDArray[np.float32] = steps.astype(np.float32, copy=False) * scale
    return result
