"""Results kept between runs: arrays under a key, in a folder of bounded size.

The folder is `$QGRAPH_CACHE`, else `qgraph` in the platform's folder for caches (on Linux
`$XDG_CACHE_HOME`, else `~/.cache`). `QGRAPH_CACHE=off` switches it off. Nothing in it is needed:
what is missing or damaged is computed again.
"""

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.data.digest import new_hash
from qgraph.data.npy import reading
from qgraph.errors import DataError

VARIABLE = "QGRAPH_CACHE"
OFF = "off"
LIMIT_BYTES = 1 << 30
# What a writer that was killed left behind goes after a day.
STALE_S = 86400.0
FORMAT = 1
_META = "meta"
_KIND = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class Entry:
    """What is kept under one key.

    Attributes:
        meta: Anything JSON has.
        arrays: By name; no arrays of objects.
    """

    meta: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


class Cache:
    """A folder of entries, each one file that is written whole or not at all.

    Any number of processes may share it: files are renamed into place, and an entry that another
    process drops is a miss. Python objects are never stored, so reading runs no code.
    """

    def __init__(self, folder: Path, limit: int = LIMIT_BYTES) -> None:
        """Use `folder`, which is made when something is first written.

        Args:
            folder: Where entries lie.
            limit: Bytes; beyond it the entries not used for longest are dropped.
        """
        self.folder, self.limit = folder, limit

    def get(self, kind: str, key: str) -> Entry | None:
        """Return an entry, or None; a damaged one is removed."""
        path = self._path(kind, key)
        if not path.is_file():
            return None
        try:
            entry = _read(path, key)
            # The time of last use decides what is dropped first.
            os.utime(path)
        except FileNotFoundError:
            return None
        except (DataError, OSError):
            _remove(path)
            return None
        return entry

    def put(
        self, kind: str, key: str, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> str | None:
        """Keep an entry, in place of an older one.

        Returns:
            Why it could not be kept (no space, no permission), or None.
        """
        text = json.dumps({"format": FORMAT, "key": key, "meta": meta})
        members: dict[str, Any] = {f"a_{name}": array for name, array in arrays.items()}
        members[_META] = np.frombuffer(text.encode(), np.uint8)
        if any(array.dtype == object for array in members.values()):
            raise TypeError("arrays of objects can't be kept: reading them would run code")
        scratch = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, scratch = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=self.folder)
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **members)
            os.replace(scratch, self._path(kind, key))
        except OSError as error:
            if scratch:
                _remove(Path(scratch))
            return error.strerror or str(error)
        self._trim(keep=self._path(kind, key))
        return None

    def drop(self, kind: str, key: str) -> None:
        """Forget an entry, if there is one."""
        _remove(self._path(kind, key))

    def _path(self, kind: str, key: str) -> Path:
        if not _KIND.fullmatch(kind):
            raise ValueError(f"kind {kind!r} is no plain word")
        return self.folder / f"{kind}-{new_digest(key)}.npz"

    def _trim(self, keep: Path) -> None:
        """Drop what was not used for longest until the folder is within its limit."""
        found: list[tuple[float, int, Path]] = []
        try:
            for entry in os.scandir(self.folder):
                status = entry.stat(follow_symlinks=False)
                if entry.name.endswith(".tmp"):
                    if time.time() - status.st_mtime > STALE_S:
                        _remove(Path(entry.path))
                elif entry.name.endswith(".npz"):
                    found.append((status.st_mtime, status.st_size, Path(entry.path)))
        except OSError:  # another process tidies up too
            return
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit:
                break
            if path != keep:
                _remove(path)
                total -= size


def open_cache() -> Cache | None:
    """Return the user's cache, or None where it is switched off or there is no place for one."""
    folder = cache_folder()
    return None if folder is None else Cache(folder)


def cache_folder() -> Path | None:
    """Return where the cache lies, or None where `QGRAPH_CACHE=off` or there is no home."""
    given = os.environ.get(VARIABLE, "").strip()
    if given.lower() == OFF:
        return None
    if given:
        return Path(given).expanduser().absolute()
    try:
        base = _platform_folder()
    except RuntimeError:  # no home
        return None
    return base / "qgraph"


def new_digest(text: str) -> str:
    """Return 32 hexadecimal digits for a text of any length."""
    hasher = new_hash()
    hasher.update(text.encode("utf-8", "surrogateescape"))
    return hasher.hexdigest()


def _platform_folder() -> Path:
    # The XDG specification says that a relative path counts as none.
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():
        return xdg
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    local = os.environ.get("LOCALAPPDATA")
    if os.name == "nt" and local:
        return Path(local)
    return Path.home() / ".cache"


def _read(path: Path, key: str) -> Entry:
    with reading(str(path)), np.load(path, allow_pickle=False) as archive:
        members = {name: archive[name] for name in archive.files}
        head = json.loads(members.pop(_META).tobytes()) if _META in members else None
    if not isinstance(head, dict) or head.get("format") != FORMAT or head.get("key") != key:
        raise DataError("is no entry for this key", where=str(path))
    meta = head.get("meta")
    if not isinstance(meta, dict):
        raise DataError("has no description", where=str(path))
    return Entry(meta, {name.removeprefix("a_"): array for name, array in members.items()})


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # kept by someone, or not ours to remove
        return
