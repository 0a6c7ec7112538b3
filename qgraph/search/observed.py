"""Shapes and sizes of all values, from one run: shape inference does not know dynamic axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.runtime.reference import open_reference
from qgraph.search.segments import Segments


@dataclass(frozen=True)
class Seen:
    """What a value looked like.

    Attributes:
        shape: Its shape.
        dtype: Its type.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.size * self.dtype.itemsize


def observe(
    model: Path, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]
) -> dict[str, Seen]:
    """Run a model once and return what its inputs and the named values look like.

    Args:
        model: The float model.
        names: Values of its outermost graph.
        feeds: One sample.
    """
    inside = [name for name in dict.fromkeys(names) if name not in feeds]
    with open_reference(model, inside) as session:
        given = {info.name: feeds[info.name] for info in session.inputs if info.name in feeds}
        found = {**given, **(session.run(given, inside) if inside else {})}
    return {name: Seen(array.shape, array.dtype) for name, array in found.items()}


def sweep_bytes(segments: Segments, seen: Mapping[str, Seen]) -> float:
    """Bytes that a sweep holds for one sample at most: living values, once for each unit so far."""
    living: dict[str, int] = {}
    most, probes = 0.0, 0
    for segment in segments.parts:
        probes += len(segment.probes)
        for name in (*segment.reads, *segment.keeps):
            living[name] = seen[name].nbytes if name in seen else 0
        # Half of what a unit changes is changed by its neighbours' probes too, or dropped by then.
        most = max(most, sum(living.values()) * (1 + probes / 2))
        for name in segment.drops:
            living.pop(name, None)
    return float(most)
