"""ONNX Runtime's values: from numpy and DLPack, and back, on the host and on a device."""

import ctypes
import math
from typing import Any

import numpy as np

from qgraph.errors import DataError
from qgraph.runtime.backend import TensorInfo
from qgraph.runtime.tensors import (
    EXTENSION_DTYPES,
    Array,
    check_array,
    check_type,
    is_foreign,
    numpy_dtype,
)


def onnx_code(dtype: str) -> int:
    """The number of an element type in ONNX's TensorProto."""
    from onnx import TensorProto

    name = {"float32": "float", "float64": "double"}.get(dtype, dtype)
    return int(TensorProto.DataType.Value(name.upper()))


def from_numpy(dtype: str, array: Array) -> Any:
    """A value on the array's own memory, which it keeps alive; there are none of strings."""
    from onnxruntime import OrtValue

    if dtype not in EXTENSION_DTYPES:
        return OrtValue.ortvalue_from_numpy(array)
    bits = array.view(np.dtype(f"u{array.itemsize}"))
    return OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx_code(dtype))


def take(info: TensorInfo, feed: Any) -> Any:
    """A feed on its own memory, wherever that lies: a numpy array, or a value made of DLPack.

    Raises:
        DataError: Its type or shape is not the input's, it is not contiguous, or holds strings.
    """
    if info.dtype == "string":
        raise DataError("strings have no DLPack", where=f"input {info.name!r}", fix="use run")
    if not is_foreign(feed):
        return check_array(info, feed)
    from onnxruntime import OrtValue

    from qgraph.runtime.ort_session import type_from_ort

    try:
        value = OrtValue.from_dlpack(feed)
    except Exception as error:
        raise DataError(
            f"can't be taken without a copy: {str(error).splitlines()[0]}",
            where=f"input {info.name!r}",
            fix="pass a contiguous array that needs no gradient",
        ) from error
    check_type(info, type_from_ort(value.data_type()), value.shape())
    return value


def from_feed(info: TensorInfo, feed: Any) -> Any:
    """A value on a feed's own memory; see `take`."""
    taken = take(info, feed)
    return from_numpy(info.dtype, taken) if isinstance(taken, np.ndarray) else taken


def placed(dtype: str, taken: Any, device: str) -> Any:
    """A copy of what `take` gave, in memory of a device."""
    from onnxruntime import OrtValue

    if not isinstance(taken, np.ndarray):
        return copied(dtype, taken, device)
    if dtype in EXTENSION_DTYPES:
        return copied(dtype, from_numpy(dtype, taken), device)
    return OrtValue.ortvalue_from_numpy(taken.copy() if device == "cpu" else taken, device, 0)


def fill(dtype: str, held: Any, taken: Any) -> None:
    """Copy what `take` gave into a value of the same shape."""
    if isinstance(taken, np.ndarray) and dtype in EXTENSION_DTYPES:
        taken = from_numpy(dtype, taken)
    if math.prod(held.shape()):
        held.update_inplace(taken)


def copied(dtype: str, value: Any, device: str) -> Any:
    """A copy of a value in memory of a device."""
    from onnxruntime import OrtValue

    made = OrtValue.ortvalue_from_shape_and_type(value.shape(), onnx_code(dtype), device, 0)
    if value.tensor_size_in_bytes():
        made.update_inplace(value)
    return made


def to_numpy(dtype: str, value: Any) -> Array:
    """A value's content in memory of its own, from whatever device."""
    if dtype not in EXTENSION_DTYPES:
        return np.array(value.numpy())
    if value.device_name() != "cpu":
        value = copied(dtype, value, "cpu")
    size = value.tensor_size_in_bytes()
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(bytearray(raw), dtype=numpy_dtype(dtype)).reshape(value.shape())
