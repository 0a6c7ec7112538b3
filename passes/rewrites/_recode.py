"""Constant codes with zero points, as codes without: arrays in, arrays out."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import INTEGERS, Encoding, expand
from qgraph.passes.rewrites._qdq import Parameters

_NARROW = {"int4": "int4", "uint4": "int4", "int8": "int8", "uint8": "int8"}


@dataclass(frozen=True, eq=False)
class Recoded:
    """A constant in symmetric codes.

    Attributes:
        codes: The codes, in the shape they had.
        parameters: Their parameters, zero points 0.
        bound: How far a value moved at most; 0 where all are the same.
    """

    codes: NDArray[Any]
    parameters: Parameters
    bound: float


def recode(codes: NDArray[Any], old: Parameters) -> Recoded | str:
    """Return symmetric codes for constant ones, or the reason why not.

    Where the codes less their zero point fit the new type, steps stay and every value with them;
    elsewhere the step of that channel or block grows until they do.
    """
    dtype = _NARROW.get(old.dtype)
    if dtype is None:
        return f"its codes are {old.dtype}"
    try:
        encoding = old.encoding(codes.ndim)
        zero = expand(encoding.zero_point, encoding.block, codes.shape)
        offsets = codes.astype(np.int64) - zero
    except ValueError as error:
        return str(error)
    low, high, array_type = INTEGERS[dtype]
    # How many times too large the offsets are, one number a scale.
    excess = _largest(np.maximum(offsets / low, offsets / high), encoding)
    if dtype == "int4" and float(excess.max(initial=0.0)) > 1:
        return "its 4-bit codes less their zero points don't fit 4 bits; quantize the weight again"
    before = old.scale.astype(np.float64).reshape(encoding.scale.shape)
    after = (before * np.maximum(excess, 1.0)).astype(old.scale.dtype).astype(np.float64)
    ratio = before / np.where(after == 0, 1.0, after)
    steps, old_step, new_step = (
        expand(each, encoding.block, codes.shape) for each in (ratio, before, after)
    )
    fresh = np.clip(np.rint(offsets * steps), low, high)
    moved = float(np.abs(fresh * new_step - offsets * old_step).max(initial=0.0))
    scale = after.astype(old.scale.dtype).reshape(old.scale.shape)
    new = replace(old, dtype=dtype, scale=scale, zero_point=np.zeros(scale.shape, np.int64))
    return Recoded(fresh.astype(np.int64).astype(array_type), new, moved)


def _largest(values: NDArray[np.float64], encoding: Encoding) -> NDArray[np.float64]:
    """Return the largest value under each scale, in the shape of the scales."""
    for axis, length in enumerate(encoding.block):
        if length == 0:
            values = values.max(axis=axis, keepdims=True, initial=0.0)
        elif length > 1:
            starts = np.arange(0, values.shape[axis], length)
            values = np.maximum.reduceat(values, starts, axis=axis)
    if not encoding.block:
        return np.asarray(values.max(initial=0.0))
    return values
