"""Read TensorProto files, the form of ONNX's own test data."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qgraph.data import limits
from qgraph.errors import DataError


def read_tensor(path: Path) -> tuple[str, NDArray[Any]]:
    """Read one TensorProto.

    Returns:
        Its name, which may be empty, and its values.

    Raises:
        DataError: Missing, too large, damaged, not a dense tensor, or values in another file.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    where = str(path)
    try:
        size = path.stat().st_size
        largest = min(limits.MAX_PB_BYTES, limits.memory_bytes())
        if size > largest:
            raise DataError(
                f"holds {limits.readable(size)}, more than {limits.readable(largest)}",
                where=where,
                fix="save it as .npy",
            )
        proto = onnx.TensorProto.FromString(path.read_bytes())
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", where=where) from None
    except DecodeError as error:
        raise DataError(f"is damaged or not a TensorProto ({error})", where=where) from None
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        raise DataError(
            "keeps its values in another file, which isn't followed",
            where=where,
            fix="save the values in the .pb itself",
        )
    if proto.data_type == onnx.TensorProto.UNDEFINED:
        raise DataError("is not a TensorProto (it has no element type)", where=where)
    try:
        return proto.name, numpy_helper.to_array(proto)
    except Exception as error:  # noqa: BLE001 - to_array raises many types on damaged protos
        raise DataError(f"is a damaged TensorProto ({error})", where=where) from None
