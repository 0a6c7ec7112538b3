"""Find the data files of a folder, and the source made of `.npz`, `.npy` and `.pb` files."""

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qgraph.data import limits
from qgraph.data.arrays import npz_columns, only_input
from qgraph.data.conform import check_names
from qgraph.data.digest import files_digest
from qgraph.data.images import SUFFIXES as IMAGE_SUFFIXES
from qgraph.data.inputs import InputLayout
from qgraph.data.npy import map_npy
from qgraph.data.source import Pending, Source
from qgraph.data.tensor_pb import read_tensor
from qgraph.errors import DataError

ARRAY_SUFFIXES = frozenset({".npz", ".npy", ".pb"})
_TEST_TENSOR = re.compile(r"(input|output)_(\d+)\.pb")


def find_files(folder: Path) -> tuple[str, list[Path]]:
    """Find the data files below a folder, sorted by their names with numbers in order.

    Hidden files and folders, and files of other kinds, are left out.

    Returns:
        `image` or the suffix that all of them have, and the files.

    Raises:
        DataError: No data files, files of two kinds, a loop of links, or nesting beyond reason.
    """
    found: dict[str, list[Path]] = {}
    for file in _walk(folder):
        suffix = file.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            found.setdefault("image", []).append(file)
        elif suffix in ARRAY_SUFFIXES:
            found.setdefault(suffix, []).append(file)
    known = ", ".join(sorted(IMAGE_SUFFIXES | ARRAY_SUFFIXES))
    if not found:
        raise DataError("has no data files", where=str(folder), fix=f"give one with {known}")
    if len(found) > 1:
        kinds = " and ".join(f"{len(files)} {kind}" for kind, files in sorted(found.items()))
        raise DataError(f"mixes {kinds} files", where=str(folder), fix="keep one kind in a folder")
    kind, files = found.popitem()
    return kind, sorted(files, key=lambda file: _natural(file.relative_to(folder)))


class FileSource(Source):
    """Files that each hold one sample or batch; for test data sets, one folder of `.pb` does."""

    kind = "files"

    def __init__(self, suffix: str, files: Sequence[Path], root: Path, layout: InputLayout) -> None:
        """Group the files into items; nothing is read.

        Raises:
            DataError: `.npy` or loose `.pb` files for a model with several inputs, or a folder
                of `input_K.pb` that lacks an input.
        """
        self.where, self._root, self._layout = str(root), root, layout
        self._suffix = suffix
        self._items = [(file, {"": file}) for file in files]
        if suffix == ".pb":
            self._items = self._test_sets(files)
        elif suffix == ".npy":
            only_input(layout, self.where)
        self.rows_per_item = None if layout.uniform else 1

    @property
    def count(self) -> int:
        """Number of files, or of folders with one `.pb` for each input."""
        return len(self._items)

    def items(self) -> Iterator[Pending]:
        """Give the files in order; each is read when its item is loaded."""
        for index, (place, parts) in enumerate(self._items):
            yield Pending(f"{place}: sample {index}", partial(self._load, parts))

    def digest(self) -> str:
        """Hash names and contents of the files."""
        return files_digest(self._files(), self._root)

    def key(self) -> str:
        """Hash names and every byte of the files."""
        return files_digest(self._files(), self._root, whole=True)

    def _files(self) -> list[Path]:
        return [file for _, parts in self._items for file in parts.values()]

    def _load(self, parts: Mapping[str, Path]) -> dict[str, Any]:
        if "" not in parts:
            return {name: read_tensor(file)[1] for name, file in parts.items()}
        file = parts[""]
        if self._suffix == ".npz":
            columns = npz_columns(file, self._layout.names)
            check_names(list(columns), self._layout, str(file))
            wanted = columns if self._layout.labelled else self._layout.names
            return {n: columns[n].whole() for n in wanted if n in columns}
        name = only_input(self._layout, self.where)
        return {name: map_npy(file, str(file)) if self._suffix == ".npy" else read_tensor(file)[1]}

    def _test_sets(self, files: Sequence[Path]) -> list[tuple[Path, dict[str, Path]]]:
        """Group `input_K.pb` by folder; other names are one-input samples."""
        if not any(_TEST_TENSOR.fullmatch(file.name) for file in files):
            only_input(self._layout, self.where)
            return [(file, {"": file}) for file in files]
        names = self._layout.names
        sets: dict[Path, dict[int, Path]] = {}
        for file in files:
            match = _TEST_TENSOR.fullmatch(file.name)
            if match and match[1] == "input":
                sets.setdefault(file.parent, {})[int(match[2])] = file
        for folder, numbered in sets.items():
            if sorted(numbered) != list(range(len(names))):
                held = ", ".join(numbered[k].name for k in sorted(numbered))
                raise DataError(
                    f"holds {held}, the model has {len(names)} inputs ({', '.join(names)})",
                    where=str(folder),
                    fix=f"give input_0.pb to input_{len(names) - 1}.pb in the model's order",
                )
        if not sets:
            raise DataError("has outputs but no input_0.pb", where=self.where)
        return [
            (folder, {names[k]: file for k, file in sorted(numbered.items())})
            for folder, numbered in sets.items()
        ]


def _natural(relative: Path) -> list[tuple[int, int, str]]:
    """Sort key under which `input_2` comes before `input_10`."""
    parts = re.split(r"(\d+)", relative.as_posix())
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts]


def _walk(top: Path) -> Iterator[Path]:
    """Give the regular files below a folder, following links but never twice into a folder."""
    visited: set[tuple[int, int]] = set()
    looked = 0
    stack = [(top, 0)]
    while stack:
        folder, depth = stack.pop()
        try:
            status = folder.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in visited:
                raise DataError(
                    "is reached twice through a link", where=str(folder), fix="remove the link"
                )
            visited.add(identity)
            if depth > limits.MAX_FOLDER_DEPTH:
                raise DataError(
                    f"is nested more than {limits.MAX_FOLDER_DEPTH} folders deep",
                    where=str(folder),
                )
            for entry in os.scandir(folder):
                looked += 1
                if looked > limits.MAX_FOLDER_ENTRIES:
                    raise DataError(
                        f"has more than {limits.MAX_FOLDER_ENTRIES:,} entries", where=str(top)
                    )
                if entry.name.startswith((".", "__MACOSX")):
                    continue
                path = Path(entry.path)
                if entry.is_dir():
                    stack.append((path, depth + 1))
                elif path.suffix.lower() in IMAGE_SUFFIXES | ARRAY_SUFFIXES:
                    yield _regular(path)
        except OSError as error:
            where = str(error.filename or folder)
            raise DataError(f"can't be read ({error.strerror})", where=where) from None


def _regular(path: Path) -> Path:
    """Return the path of a regular file; reading a pipe or device could block for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError("is not a regular file", where=str(path), fix="remove it")
    return path
