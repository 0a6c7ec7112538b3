"""Values that stages hand on to later stages, for every sample: in memory, then on disk."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Boundary:
    """Arrays by sample and name; beyond a budget of memory they go to a temporary file each.

    Use it as a context manager, which removes the files.
    """

    def __init__(self, memory: int) -> None:
        """Start empty.

        Args:
            memory: Bytes of arrays to hold.
        """
        self._memory, self._held = memory, 0
        self._arrays: dict[tuple[int, str], Array | Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.samples = 0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Forget everything."""
        self._arrays.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def put(self, sample: int, values: Mapping[str, Array]) -> None:
        """Keep arrays of a sample."""
        for name, array in values.items():
            if self._held + array.nbytes > self._memory:
                self._arrays[sample, name] = self._spill(array)
            else:
                self._held += array.nbytes
                self._arrays[sample, name] = array
        self.samples = max(self.samples, sample + 1)

    def get(self, sample: int, names: Iterable[str]) -> dict[str, Array]:
        """Return arrays of a sample."""
        return {name: self._read(self._arrays[sample, name]) for name in names}

    def drop(self, sample: int, names: Iterable[str]) -> None:
        """Forget arrays of a sample."""
        for name in names:
            array = self._arrays.pop((sample, name), None)
            if isinstance(array, Path):
                array.unlink()
            elif array is not None:
                self._held -= array.nbytes

    def _spill(self, array: Array) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="qgraph-")
        handle, path = tempfile.mkstemp(suffix=".npy", dir=self._folder.name)
        with open(handle, "wb") as file:
            np.save(file, array, allow_pickle=False)
        return Path(path)

    @staticmethod
    def _read(array: Array | Path) -> Array:
        return np.load(array, allow_pickle=False) if isinstance(array, Path) else array
