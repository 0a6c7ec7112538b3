"""Sources made of whole arrays whose first axis counts the samples."""

import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from qgraph.data import limits
from qgraph.data.conform import check_names
from qgraph.data.digest import files_digest, new_hash, update_with
from qgraph.data.inputs import InputLayout
from qgraph.data.npy import Header, map_npy, read_elements, read_header, reading
from qgraph.data.source import Pending, Source
from qgraph.errors import DataError

Row = Callable[[], Any]


class Column:
    """One array of a source, read one step of its first axis at a time.

    Attributes:
        shape: Its shape; `(length,)` alone where the steps differ in shape.
        ragged: Whether the steps differ in shape.
    """

    shape: tuple[int, ...] = ()
    ragged = False

    def rows(self) -> Iterator[Row]:
        """Give a reader for each step; each is valid until the next is asked for."""
        raise NotImplementedError

    def whole(self) -> NDArray[Any]:
        """Return all steps at once."""
        raise NotImplementedError


class MemoryColumn(Column):
    """An array in memory or mapped from a file, or a list with an array for each sample."""

    def __init__(self, values: NDArray[Any] | Sequence[Any]) -> None:
        """Keep the values without copying them."""
        self._values = values
        self.ragged = not isinstance(values, np.ndarray)
        if isinstance(values, np.ndarray):
            self.ragged = values.dtype == object and any(
                isinstance(value, np.ndarray) for value in values.flat
            )
        self.shape = values.shape if isinstance(values, np.ndarray) else (len(values),)

    def rows(self) -> Iterator[Row]:
        """Give a reader for each step."""
        for index in range(self.shape[0]):
            yield partial(self._values.__getitem__, index)

    def whole(self) -> NDArray[Any]:
        """Return all steps at once."""
        if not self.ragged:
            return np.asarray(self._values)
        stacked = np.empty(len(self._values), object)
        stacked[:] = [np.asarray(value) for value in self._values]
        return stacked


class NpzColumn(Column):
    """A member of an `.npz` archive, unpacked as it is read: never more than one step in memory."""

    def __init__(self, path: Path, member: zipfile.ZipInfo) -> None:
        """Read the member's header."""
        self._path, self._member = path, member
        self._where = f"{path}[{member.filename.removesuffix('.npy')}]"
        grown = member.file_size > limits.INFLATION_FREE_BYTES
        if grown and member.file_size > limits.MAX_INFLATION * member.compress_size:
            raise DataError(
                f"would inflate from {limits.readable(member.compress_size)} "
                f"to {limits.readable(member.file_size)}",
                where=self._where,
                fix="save it with np.savez (uncompressed) if it is honest",
            )
        with reading(self._where), zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            self._header: Header = read_header(stream, member.file_size, self._where)
        self.shape = self._header.shape

    def rows(self) -> Iterator[Row]:
        """Give a reader for each step; unpacking goes on from step to step."""
        if self._header.fortran:
            yield from MemoryColumn(self.whole()).rows()
            return
        with self._open() as stream:
            for _ in range(self.shape[0]):
                yield partial(_same, read_elements(stream, self._header, 1, self._where)[0])

    def whole(self) -> NDArray[Any]:
        """Return the whole array."""
        with self._open() as stream:
            return read_elements(stream, self._header, None, self._where)

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        """Open the member behind its header."""
        with (
            reading(self._where),
            zipfile.ZipFile(self._path) as archive,
            archive.open(self._member) as stream,
        ):
            stream.read(self._header.length)
            yield stream


class ArraySource(Source):
    """Columns by name: those of the inputs are the data, the others are labels."""

    def __init__(
        self,
        columns: Mapping[str, Column],
        layout: InputLayout,
        kind: str,
        where: str,
        path: Path | None = None,
    ) -> None:
        """Check names and lengths.

        Raises:
            DataError: A missing input, no samples, or inputs that differ in their number.
        """
        self.kind, self.where, self._path = kind, where, path
        check_names(list(columns), layout, where)
        self._inputs = {name: columns[name] for name in layout.names if name in columns}
        self._count = self._length()
        self._labels = {
            name: column
            for name, column in columns.items()
            if name not in self._inputs and column.shape[:1] == (self._count,)
        }
        self._read = self._inputs | (self._labels if layout.labelled else {})
        self.rows_per_item = self._rows(layout)

    @property
    def count(self) -> int:
        """Number of samples along the first axis."""
        return self._count

    def items(self) -> Iterator[Pending]:
        """Give the steps of the first axis."""
        readers = {name: column.rows() for name, column in self._read.items() if column.shape}
        constants = {
            name: column.whole() for name, column in self._inputs.items() if not column.shape
        }
        for index in range(self._count):
            row = {name: next(reader) for name, reader in readers.items()}
            yield Pending(f"{self.where}: sample {index}", partial(_load, row, constants))

    def digest(self) -> str:
        """Hash the content: checksums of an archive's members, else the values themselves."""
        if self.kind == "npz" and self._path is not None:
            hasher = new_hash()
            with reading(self.where), zipfile.ZipFile(self._path) as archive:
                for member in sorted(archive.infolist(), key=lambda info: info.filename):
                    line = f"{member.filename}\0{member.CRC}\0{member.file_size}\0"
                    hasher.update(line.encode())
            return hasher.hexdigest()
        if self._path is not None:
            return files_digest([self._path], self._path.parent)
        hasher = new_hash()
        update_with(hasher, {name: column.whole() for name, column in self._inputs.items()})
        return hasher.hexdigest()

    def key(self) -> str:
        """Hash every byte of the file; arrays in memory are hashed whole anyway."""
        if self._path is None:
            return self.digest()
        return files_digest([self._path], self._path.parent, whole=True)

    def describe(self) -> dict[str, Any]:
        """Return the names of the labels."""
        return {"labels": sorted(self._labels)} if self._labels else {}

    def _length(self) -> int:
        lengths = {name: c.shape[0] for name, c in self._inputs.items() if c.shape}
        if not lengths:
            raise DataError("has no axis of samples", where=self.where, fix="add a first axis")
        if len(set(lengths.values())) > 1:
            sizes = ", ".join(f"{name} {size}" for name, size in lengths.items())
            raise DataError(
                f"inputs differ in their number of samples ({sizes})",
                where=self.where,
                fix="give all arrays the same first axis",
            )
        count = next(iter(lengths.values()))
        sized = any(c.ragged or 0 not in c.shape for c in self._inputs.values())
        if count == 0 or not sized:
            shapes = ", ".join(f"{name} {list(c.shape)}" for name, c in self._inputs.items())
            raise DataError(
                f"is empty ({shapes})", where=self.where, fix="give at least one sample"
            )
        return count

    def _rows(self, layout: InputLayout) -> int | None:
        """Rows in every item, None where the items may differ."""
        if not layout.uniform:
            return 1
        if any(column.ragged for column in self._inputs.values()):
            return None
        rows = set()
        for spec in layout.inputs:
            if spec.name not in self._inputs:
                continue
            shape = self._inputs[spec.name].shape
            batched = len(shape) == len(spec.shape or ()) + 1
            rows.add(shape[1] if batched else 1)
        return rows.pop() if len(rows) == 1 else None


def npz_source(path: Path, layout: InputLayout) -> ArraySource:
    """Open an `.npz` archive; only headers are read."""
    return ArraySource(npz_columns(path, layout.names), layout, "npz", str(path), path)


def npz_columns(path: Path, needed: Collection[str]) -> dict[str, Column]:
    """Return the arrays of an archive by key.

    Keys that aren't needed and can't be read, such as pickled labels, are left out.

    Raises:
        DataError: Damaged, encrypted, inflating beyond reason, or holding Python objects.
    """
    with reading(str(path)), zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    if sum(member.compress_size for member in members) > path.stat().st_size:
        raise DataError("has members that overlap, as zip bombs do", where=str(path))
    columns: dict[str, Column] = {}
    for member in members:
        key = member.filename.removesuffix(".npy")
        try:
            columns[key] = NpzColumn(path, member)
        except DataError:
            if key in needed:
                raise
    return columns


def npy_source(path: Path, layout: InputLayout) -> ArraySource:
    """Map an `.npy` file for a model with one input."""
    name = only_input(layout, str(path))
    return ArraySource(
        {name: MemoryColumn(map_npy(path, str(path)))}, layout, "npy", str(path), path
    )


def memory_source(arrays: Mapping[str, Any], layout: InputLayout) -> ArraySource:
    """Wrap arrays, or lists with an array for each sample, given through the Python API."""
    columns: dict[str, Column] = {}
    for name, value in arrays.items():
        listed = isinstance(value, list | tuple)
        columns[str(name)] = MemoryColumn(value if listed else np.asarray(value))
    return ArraySource(columns, layout, "arrays", "data")


def only_input(layout: InputLayout, where: str) -> str:
    """Return the name of the only input; a DataError says what to give where there are more."""
    names = layout.required
    if len(names) == 1:
        return names[0]
    raise DataError(
        f"one array can't feed {len(names)} inputs ({', '.join(names)})",
        where=where,
        fix="give a .npz with a key for each input",
    )


def _same(row: NDArray[Any]) -> NDArray[Any]:
    return row


def _load(row: Mapping[str, Row], constants: Mapping[str, Any]) -> dict[str, Any]:
    return {**constants, **{name: load() for name, load in row.items()}}
