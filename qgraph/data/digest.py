"""Content hashes of data: complete up to 256 MiB, by sampled blocks beyond that."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import DataError

_FULL_BYTES = 256 << 20
_BLOCK = 1 << 16
_BLOCKS = 64


def new_hash() -> "hashlib.blake2b":
    """Return the hash that all fingerprints use."""
    return hashlib.blake2b(digest_size=16)


def files_digest(files: Iterable[Path], root: Path, *, whole: bool = False) -> str:
    """Hash names and contents of files.

    Beyond 256 MiB in all, each file counts by its size and by up to 64 blocks of 64 KiB spread
    over it, so that a folder of any size takes seconds.

    Args:
        files: The files.
        root: Folder that their names are relative to.
        whole: Hash every byte (about 1 GB/s): for keys, which must differ where any byte does.

    Returns:
        32 hexadecimal digits, with the prefix `sampled-` where blocks were sampled.

    Raises:
        DataError: A file can't be read.
    """
    listed = [Path(file) for file in files]
    hasher = new_hash()
    try:
        sizes = [file.stat().st_size for file in listed]
        sampled = sum(sizes) > _FULL_BYTES and not whole
        for file, size in zip(listed, sizes, strict=True):
            name = file.relative_to(root).as_posix() if root in file.parents else file.name
            hasher.update(f"{name}\0{size}\0".encode())
            step = size // _BLOCKS if sampled and size > _BLOCK * _BLOCKS else _BLOCK
            with file.open("rb") as stream:
                for start in range(0, size, step):
                    stream.seek(start)
                    hasher.update(stream.read(_BLOCK))
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", where=str(error.filename)) from None
    return ("sampled-" if sampled else "") + hasher.hexdigest()


def update_with(hasher: "hashlib.blake2b", feeds: Mapping[str, Any]) -> None:
    """Add named arrays to a hash: names, types, shapes and values."""
    for name in sorted(feeds):
        array: NDArray[Any] = np.asarray(feeds[name])
        hasher.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        if array.dtype == object:
            for value in array.flat:
                if isinstance(value, np.ndarray):
                    update_with(hasher, {"": value})
                else:
                    hasher.update(repr(value).encode() + b"\0")
        else:
            # Viewed as bytes, since the buffer protocol knows no bfloat16.
            flat = np.ascontiguousarray(array).reshape(-1)
            hasher.update(flat.view(np.uint8).data if flat.size else b"")
