"""Writing an `.npz` file that is complete or not there."""

import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import DataError, UsageError

_KINDS = "biufcSU"


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays under any names, unlike `numpy.savez`, which refuses a few such as 'file'.

    Types that numpy files don't have (bfloat16, float8) are written as float32, strings as text.

    Raises:
        UsageError: The name does not end in .npz.
        DataError: It can't be written; nothing is left behind and an older file stays.
    """
    target = Path(path)
    if target.suffix.lower() != ".npz":
        raise UsageError(f"{str(path)!r} is no .npz file", fix="name the output OUT.npz")
    draft = None
    try:
        with tempfile.NamedTemporaryFile(
            prefix=f".{target.name}.", dir=target.parent, delete=False
        ) as file:
            draft = Path(file.name)
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, _plain(array), allow_pickle=False)
        draft.chmod(0o666 & ~_umask())
        draft.replace(target)
        draft = None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"can't be written: {reason}", where=str(path)) from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == object:
        return array.astype(np.str_)
    return array if array.dtype.kind in _KINDS else array.astype(np.float32)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
