"""Arrays that lie on disk, and constants computed from them each time, so that none is held."""

import mmap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Graph, Value


def on_disk(array: NDArray[Any]) -> bool:
    """Whether an array is a view of a mapped file, as `np.memmap` and external weights are."""
    return _file_behind(array) is not None


def release(array: NDArray[Any]) -> None:
    """Give back the memory into which a mapped file was read, if one is behind the array.

    The array stays what it is: what is looked at again is read again. Files that are mapped for
    writing are left alone, because what was written may be nowhere else.
    """
    file = _file_behind(array)
    if file is not None and hasattr(mmap, "MADV_DONTNEED") and memoryview(file).readonly:
        file.madvise(mmap.MADV_DONTNEED)


def derived(
    graph: Graph,
    hint: str,
    source: NDArray[Any],
    compute: Callable[[NDArray[Any]], NDArray[Any]],
    *,
    dtype: Any,
    shape: Sequence[int],
) -> Value:
    """Add the constant `compute(source)`; it is lazy where the source lies on disk.

    Args:
        graph: Where to add it.
        hint: Name, made unique.
        source: Any array.
        compute: What makes the constant of it.
        dtype: Type of the result.
        shape: Its shape.
    """
    if on_disk(source):
        return graph.lazy_constant(
            hint, np.dtype(dtype), shape, partial(_computed, compute, source)
        )
    return graph.constant(hint, compute(source))


def _computed(
    compute: Callable[[NDArray[Any]], NDArray[Any]], source: NDArray[Any]
) -> NDArray[Any]:
    result = compute(source)
    release(source)
    return result


def _file_behind(array: NDArray[Any]) -> mmap.mmap | None:
    base: object = array
    while base is not None:
        if isinstance(base, mmap.mmap):
            return base
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return None
