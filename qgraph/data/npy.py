"""Read `.npy` data without pickles and without trusting what a header claims."""

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from qgraph.data import limits
from qgraph.errors import DataError

_BROKEN = (
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,  # zipfile: encrypted members
    SyntaxError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class Header(NamedTuple):
    """What an `.npy` header declares, and how long the header is.

    Attributes:
        shape: Shape of the array.
        fortran: Whether it is stored in column-major order.
        dtype: Type of its elements.
        length: Bytes before the first element.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    length: int

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn whatever a damaged or missing file raises into one DataError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"can't be read ({reason})", where=where) from None
    except MemoryError:
        raise DataError("does not fit into memory", where=where) from None
    except _BROKEN as error:
        fix = "write it again with np.save or np.savez"
        raise DataError(f"is damaged or not a numpy file ({error})", where=where, fix=fix) from None


def read_header(stream: IO[bytes], total: int, where: str) -> Header:
    """Read an `.npy` header and hold it against the bytes that are there.

    Args:
        stream: Open at the start of the `.npy` data.
        total: Bytes of header and elements together.
        where: File and key, for messages.

    Raises:
        DataError: No header, Python objects, or another size than the header declares.
    """
    with reading(where):
        version = npy_format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = npy_format.read_array_header_1_0(stream)
        elif version in ((2, 0), (3, 0)):  # 3.0 differs in the encoding of field names only
            shape, fortran, dtype = npy_format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"unknown format version {version}")
        length = stream.tell()
    if dtype.hasobject:
        raise DataError(
            "holds Python objects, which would have to be unpickled",
            where=where,
            fix="save one .npz file for each sample in a folder",
        )
    if dtype.names is not None:
        raise DataError("holds records", where=where, fix="save one plain array for each input")
    header = Header(shape, fortran, dtype, length)
    if any(size < 0 for size in shape) or length + header.nbytes != total:
        raise DataError(
            f"is truncated or damaged: the header declares {list(shape)} {dtype.name}, "
            f"{limits.readable(max(header.nbytes, 0))}, the file holds "
            f"{limits.readable(max(total - length, 0))}",
            where=where,
        )
    return header


def map_npy(path: Path, where: str) -> NDArray[Any]:
    """Map an `.npy` file into memory, read-only; nothing is read before it is used."""
    with reading(where), path.open("rb") as stream:
        header = read_header(stream, path.stat().st_size, where)
    if header.nbytes == 0:
        return np.empty(header.shape, header.dtype)  # an empty file part can't be mapped
    with reading(where):
        return np.memmap(
            path,
            header.dtype,
            "r",
            header.length,
            header.shape,
            "F" if header.fortran else "C",
        )


def read_elements(stream: IO[bytes], header: Header, rows: int | None, where: str) -> NDArray[Any]:
    """Read elements in row-major order from a stream that stands behind the header.

    Args:
        stream: The open data.
        header: Its header.
        rows: How many steps of the first axis to read, None for the whole array.
        where: File and key, for messages.
    """
    shape = header.shape if rows is None else (rows, *header.shape[1:])
    if rows is None and header.fortran:
        shape = shape[::-1]
    size = math.prod(shape) * header.dtype.itemsize
    if size > limits.memory_bytes():
        raise DataError(
            f"needs {limits.readable(size)} at once, more than half of this machine's memory",
            where=where,
            fix="save it as .npy (row-major), which is read piece by piece",
        )
    with reading(where):
        raw = stream.read(size)
        if len(raw) != size:
            raise EOFError("it ends early")
        array = np.frombuffer(raw, header.dtype).reshape(shape)
    return array.T if rows is None and header.fortran else array
