"""Hashes of an artifact's files, and what has become of the files since."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from qgraph.errors import ArtifactError
from qgraph.manifest import FileRecord

_CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read piece by piece.

    Raises:
        ArtifactError: It can't be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ArtifactError(f"can't be read: {error.strerror}", where=str(path)) from error
    return digest.hexdigest()


def file_record(path: Path) -> FileRecord:
    """Hash and size of a file.

    Raises:
        ArtifactError: It can't be read.
    """
    return FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Hash and size of every file below a folder, by its path inside with `/` between parts."""
    return {name: file_record(folder / name) for name in sorted(_files(folder))}


@dataclass(frozen=True)
class Changes:
    """How the files of a folder differ from what was recorded.

    Attributes:
        changed: File -> how it differs.
        missing: Files that are not there.
        added: Files that nothing was recorded of.
        intact: Files that are as they were.
    """

    changed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    intact: list[str] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether something that was recorded is not as it was; additions break nothing."""
        return bool(self.changed or self.missing)


def changes(folder: Path, recorded: Mapping[str, FileRecord], *, but: str) -> Changes:
    """Compare the files below a folder with what was recorded of them.

    Args:
        folder: The folder.
        recorded: Hash and size by path inside.
        but: The file that holds the record.

    Raises:
        ArtifactError: The record has no hashes, or names files outside; a file can't be read.
    """
    if not recorded or any(record.sha256 is None for record in recorded.values()):
        raise ArtifactError(
            f"{but} has no hashes: it was written before qgraph kept them",
            where=str(folder),
            fix="compile it again",
        )
    found = Changes()
    present = set(_files(folder)) - {but}
    for name, record in recorded.items():
        check_inside(name, where=str(folder / but))
        if name not in present:
            found.missing.append(name)
        elif (difference := _difference(folder, name, record)) is not None:
            found.changed[name] = difference
        else:
            found.intact.append(name)
    found.added.extend(sorted(present - set(recorded)))
    return found


def check_inside(name: str, *, where: str) -> None:
    """Refuse a path from a file that nobody vouches for, unless it stays inside its folder.

    Raises:
        ArtifactError: It is absolute, empty, or leads out of the folder.
    """
    path = PurePosixPath(name)
    absolute = path.is_absolute() or PureWindowsPath(name).drive or "\\" in name or "\0" in name
    if absolute or not path.parts or ".." in path.parts or str(path) != name:
        raise ArtifactError(
            f"names a file outside of its folder ({name!r})", where=where, fix="compile it again"
        )


def _difference(folder: Path, name: str, record: FileRecord) -> str | None:
    """How a file differs from its record, or None; what is no plain file is never opened."""
    path = folder / name
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode):
        return "is a link now"
    if not stat.S_ISREG(info.st_mode):
        return "is no file"
    if info.st_size != record.bytes:
        return f"has {info.st_size} bytes, had {record.bytes}"
    return None if sha256_of(path) == record.sha256 else "has other content"


def _files(folder: Path) -> Iterator[str]:
    """Everything below a folder that is no folder itself; links to folders are not followed."""
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in (*names, *links):
            yield (Path(place) / name).relative_to(folder).as_posix()
