"""Made-up feeds, for timing and for checking that exact passes are exact.

Never for calibration: their ranges say nothing about real data.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qgraph.errors import DataError
from qgraph.runtime.backend import TensorInfo, format_shape
from qgraph.runtime.tensors import Array, is_float, numpy_dtype

DEFAULT_AXIS = 64
MAX_ELEMENTS = 1 << 28
_WORDS = ("alpha", "beta", "gamma", "delta")


def random_feeds(
    inputs: Sequence[TensorInfo],
    rng: np.random.Generator,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """Feeds that a model accepts, the same for the same generator state.

    Sizes: a static axis keeps its size. A dynamic axis takes `sizes["input:axis"]` (the axis as a
    number) or else `sizes[symbol]` where given; else 1 if it is the first axis of an input or its
    symbol is the first axis of one (the batch), else 64.

    Values: floats from the standard normal distribution; uint8 and int8 over their whole range
    (images, codes); other integers 0 or 1, valid as token ids, segment ids, flags and indices;
    an integer or bool input with 'mask' in its name all 1; strings from four words.

    Args:
        inputs: A session's inputs.
        rng: Source of the values.
        sizes: Sizes of dynamic axes.

    Raises:
        DataError: An input is a sequence or map, is of a 4-bit or smaller type, a size is not
            positive, or an input would have more than 2^28 elements.
    """
    chosen = dict(sizes or {})
    if bad := [f"{name}={size}" for name, size in chosen.items() if size < 1]:
        raise DataError(f"size {bad[0]} is not positive", fix="give at least 1")
    batch = {info.shape[0] for info in inputs if info.shape}
    return {info.name: _values(info, _shape(info, chosen, batch), rng) for info in inputs}


def _shape(info: TensorInfo, sizes: dict[str, int], batch: set[int | str | None]) -> list[int]:
    shape = []
    for axis, dim in enumerate(info.shape):
        if isinstance(dim, int):
            shape.append(dim)
            continue
        default = 1 if axis == 0 or (dim is not None and dim in batch) else DEFAULT_AXIS
        by_symbol = default if dim is None else sizes.get(dim, default)
        shape.append(sizes.get(f"{info.name}:{axis}", by_symbol))
    if math.prod(shape) > MAX_ELEMENTS:
        raise DataError(
            f"shape {format_shape(shape)} has more than {MAX_ELEMENTS} elements",
            where=f"input {info.name!r}",
            fix="give smaller sizes",
        )
    return shape


def _values(info: TensorInfo, shape: list[int], rng: np.random.Generator) -> Array:
    dtype = numpy_dtype(info.dtype)
    if info.dtype == "string":
        return rng.choice(np.array(_WORDS, dtype=object), size=shape)
    if info.dtype in ("int4", "uint4", "int2", "uint2", "float4e2m1"):
        raise DataError(
            f"no feeds can be made up for {info.dtype}",
            where=f"input {info.name!r}",
            fix="pass data",
        )
    if dtype.kind == "c" or is_float(dtype):
        return rng.standard_normal(shape).astype(dtype)
    if "mask" in info.name.lower():
        return np.ones(shape, dtype=dtype)
    low, high = _integer_range(dtype)
    return rng.integers(low, high, size=shape, endpoint=True).astype(dtype)


def _integer_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.name in ("int8", "uint8"):
        info = np.iinfo(dtype)
        return int(info.min), int(info.max)
    return 0, 1
