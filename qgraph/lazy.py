"""Constants computed from arrays that lie on disk: computed again each time, so that none is held."""

import mmap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Graph, Value


def on_disk(array: NDArray[Any]) -> bool:
    """Whether an array is a view of a mapped file, as `np.memmap` and external weights are."""
    base: object = array
    while base is not None:
        if isinstance(base, mmap.mmap):
            return True
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return False


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
        return graph.lazy_constant(hint, np.dtype(dtype), shape, partial(compute, source))
    return graph.constant(hint, compute(source))
