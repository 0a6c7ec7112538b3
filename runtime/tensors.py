"""Tensor types by name, and the check of feeds against a model's inputs."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from qgraph.errors import DataError
from qgraph.runtime.backend import TensorInfo, format_shape

Array = np.ndarray[Any, Any]

# ONNX types without a numpy type of their own.
EXTENSION_DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "float4e2m1": np.dtype(ml_dtypes.float4_e2m1fn),
    "int4": np.dtype(ml_dtypes.int4),
    "uint4": np.dtype(ml_dtypes.uint4),
    "int2": np.dtype(ml_dtypes.int2),
    "uint2": np.dtype(ml_dtypes.uint2),
}
_EXTENSION_NAMES = {dtype: name for name, dtype in EXTENSION_DTYPES.items()}
_NUMPY_NAMES = {
    *("float16", "float32", "float64", "bool", "complex64", "complex128"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of an ONNX type name; strings are object arrays of `str`.

    Raises:
        DataError: The type is not a tensor's element type (a sequence, a map), or unknown.
    """
    if name == "string":
        return np.dtype(object)
    if name in EXTENSION_DTYPES:
        return EXTENSION_DTYPES[name]
    if name in _NUMPY_NAMES:
        return np.dtype(name)
    raise DataError(f"type {name} can't be held in an array", fix="use tensors only")


def type_name(dtype: np.dtype[Any]) -> str:
    """The ONNX type name of a numpy dtype, or numpy's own name where ONNX has none."""
    if dtype in _EXTENSION_NAMES:
        return _EXTENSION_NAMES[dtype]
    return "string" if dtype.kind in "OUST" else dtype.name


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is a real floating-point type, the 16-bit and smaller ones included."""
    if dtype in _EXTENSION_NAMES:
        return "float" in _EXTENSION_NAMES[dtype]
    return dtype.kind == "f"


# Devices of DLPack (dlpack.h, DLDeviceType) whose memory the CPU reads: CPU, CUDA's pinned and
# managed memory, ROCm's pinned memory.
_HOST_DEVICES = (1, 3, 13, 11)


def is_foreign(value: Any) -> bool:
    """Whether a feed is another library's array, to be taken by way of DLPack."""
    return not isinstance(value, np.ndarray | np.generic) and hasattr(value, "__dlpack__")


def to_host(name: str, value: Any) -> Array:
    """An input's value as a numpy array; memory of the host is not copied.

    Raises:
        DataError: It lies on another device, or its library can't share it.
    """
    if not is_foreign(value):
        return np.asarray(value)
    where = f"input {name!r}"
    kind, number = value.__dlpack_device__()
    if int(kind) not in _HOST_DEVICES:
        raise DataError(
            f"lies on a device (DLPack kind {int(kind)}, number {number})",
            where=where,
            fix="use run_dlpack of an engine on that device, or copy it to the host",
        )
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError) as error:
        raise DataError(
            f"can't be shared with numpy: {error}", where=where, fix="pass a numpy array"
        ) from error


def check_feeds(
    inputs: Sequence[TensorInfo],
    feeds: Mapping[str, Any],
    optional: Sequence[TensorInfo] = (),
) -> dict[str, Array]:
    """Check feeds against a model's inputs and return them contiguous, in native byte order.

    Args:
        inputs: Inputs that must be fed.
        feeds: Arrays by input name.
        optional: Inputs that have a default in the model and may be fed.

    Raises:
        DataError: An input is missing or unknown, or has the wrong dtype, rank or shape; names
            the input, what came and what was expected.
    """
    known = check_names(inputs, feeds, optional)
    return {name: check_array(known[name], value) for name, value in feeds.items()}


def check_names(
    inputs: Sequence[TensorInfo], feeds: Mapping[str, Any], optional: Sequence[TensorInfo] = ()
) -> dict[str, TensorInfo]:
    """Check that every input is fed and nothing else; return all inputs by name.

    Raises:
        DataError: One is missing or unknown.
    """
    known = {info.name: info for info in (*inputs, *optional)}
    for info in inputs:
        if info.name not in feeds:
            given = ", ".join(feeds) or "nothing"
            raise DataError(
                f"missing from the feeds (given: {given})",
                where=f"input {info.name!r}",
                fix=f"pass {info}",
            )
    for name in feeds:
        if name not in known:
            raise _unknown_input(name, known)
    return known


def _unknown_input(name: str, known: Mapping[str, TensorInfo]) -> DataError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = "; ".join(str(info) for info in known.values()) or "none"
    fix = f"did you mean {near[0]!r}?" if near else f"the inputs are: {listed}"
    return DataError("the model has no such input", where=f"input {name!r}", fix=fix)


def check_array(info: TensorInfo, value: Any) -> Array:
    """Check one feed and return it as a contiguous numpy array; see `check_feeds`."""
    array = to_host(info.name, value)
    expected = numpy_dtype(info.dtype)
    check_type(info, type_name(array.dtype), array.shape)
    if info.dtype == "string":
        return _strings(array, f"input {info.name!r}")
    # order="C" rather than ascontiguousarray, which turns scalars into shape [1].
    return array.astype(expected, order="C", copy=False)


def check_type(info: TensorInfo, dtype: str, shape: Sequence[int]) -> None:
    """Check type and shape of what is fed to an input.

    Raises:
        DataError: They are not the input's.
    """
    where = f"input {info.name!r}"
    if dtype != info.dtype:
        raise DataError(
            f"dtype is {dtype}, expected {info.dtype}",
            where=where,
            fix=f"convert the array to {info.dtype}",
        )
    if info.shape and not _fits(info.shape, tuple(shape)):
        raise DataError(
            f"shape is {list(shape)}, expected {format_shape(info.shape)}",
            where=where,
            fix="pass an array of that shape",
        )


def check_bound(name: str, held: Sequence[int], given: Sequence[int]) -> None:
    """Check that a feed has the shape of the buffer that it is copied into.

    Raises:
        DataError: It has another one.
    """
    if list(held) != list(given):
        raise DataError(
            f"is bound with shape {list(held)}, not {list(given)}",
            where=f"input {name!r}",
            fix="bind feeds of that shape",
        )


def _fits(shape: tuple[int | str | None, ...], got: tuple[int, ...]) -> bool:
    if len(shape) != len(got):
        return False
    return all(
        not isinstance(want, int) or want == have for want, have in zip(shape, got, strict=True)
    )


def _strings(array: Array, where: str) -> Array:
    """An object array of `str`; bytes are read as UTF-8."""
    out = np.empty(array.shape, dtype=object)
    for index, item in np.ndenumerate(array):
        if isinstance(item, bytes):
            item = item.decode("utf-8", errors="replace")
        if not isinstance(item, str):
            raise DataError(
                f"element {list(index)} is {type(item).__name__}, expected str",
                where=where,
                fix="pass strings only",
            )
        out[index] = item
    return out
