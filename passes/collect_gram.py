"""Runs a graph on data and sums up the inputs of layers: Gram matrices and means."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.errors import DataError
from qgraph.graph import Graph
from qgraph.passes.collect import sample_count
from qgraph.passes.collect_values import Feeds, rereadable, watch
from qgraph.passes.layer_rows import Layout

Floats = NDArray[np.float64]
# Rows are summed up in groups of about so many: small products waste time.
_ROWS = 512


@dataclass(frozen=True)
class Wanted:
    """One layer's input.

    Attributes:
        value: Its name.
        layout: How it is cut into rows.
        size: The rows' length.
    """

    value: str
    layout: Layout
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes that its sums take while and after they are made."""
        return 3 * 8 * self.layout.groups * self.size**2


@dataclass(eq=False)
class Gram:
    """Sums over rows x of a layer's input, for each of G groups of K inputs.

    Attributes:
        products: Sum of x x^T, float64 [G, K, K]; rows that wait for others are missing.
        total: Sum of all rows, float64 [G, K].
        rows: Number of all rows.
    """

    products: Floats
    total: Floats
    rows: int = 0
    _waiting: list[NDArray[np.float32]] = field(default_factory=list)

    @classmethod
    def empty(cls, groups: int, size: int) -> "Gram":
        """Sums over nothing."""
        return cls(np.zeros((groups, size, size)), np.zeros((groups, size)))

    def add(self, rows: NDArray[np.float32]) -> None:
        """Add rows [n, G, K]."""
        by_group = rows.transpose(1, 0, 2)
        self.rows += len(rows)
        self.total += by_group.sum(axis=1, dtype=np.float64)
        self._waiting.append(by_group)
        if sum(each.shape[1] for each in self._waiting) >= _ROWS:
            self._multiply()

    def matrix(self, *, centred: bool) -> Floats:
        """Sum of x x^T, float64 [G, K, K].

        Args:
            centred: Of each x less the mean of all.
        """
        self._multiply()
        if not centred or self.rows == 0:
            return self.products
        mean = self.total / self.rows
        found: Floats = self.products - mean[:, :, None] * self.total[:, None, :]
        return found

    def _multiply(self) -> None:
        if self._waiting:
            together = np.concatenate(self._waiting, axis=1)
            self.products += together.transpose(0, 2, 1) @ together
            self._waiting.clear()


def collect_grams(
    graph: Graph,
    wanted: list[Wanted],
    context: Context,
    *,
    rows: int,
    samples: int,
    memory: int,
    label: str,
) -> list[Gram]:
    """Run `graph` on data and sum up rows of each input.

    Args:
        graph: Float graph; it is not changed.
        wanted: What to sum up.
        context: Has the data, which must be readable again, and the seed.
        rows: How many rows of each input to draw, evenly over the samples; twice an input's size
            where that is more.
        samples: How many samples to run at most.
        memory: Bytes for the observed values.
        label: What is going on, for progress reports.

    Returns:
        The sums, in the order of `wanted`; the same whatever the memory and number of threads.

    Raises:
        EngineError: onnxruntime is missing or refuses the graph.
        DataError: There is no data, or it makes an input NaN or infinite.
    """
    if context.data is None:
        raise DataError(f"{label} needs data", fix="pass --data")
    data = FirstSamples(context.data, samples)
    expected = data.expected or samples
    grams = [Gram.empty(each.layout.groups, each.size) for each in wanted]
    readers: dict[str, list[int]] = {}
    for number, each in enumerate(wanted):
        readers.setdefault(each.value, []).append(number)
    queues = {name: _InOrder() for name in readers}

    def see(index: int, name: str, value: NDArray[np.floating]) -> None:
        drawn = []
        for number in readers[name]:
            each = wanted[number]
            share = -(-max(rows, 2 * each.size) // expected)
            rng = np.random.default_rng([context.seed, zlib.crc32(name.encode()), index])
            drawn.append(each.layout.rows(value, share, rng))
            if not np.isfinite(drawn[-1]).all():
                raise ValueError("not finite")
        for ready in queues[name].put(index, drawn):
            for number, found in zip(readers[name], ready, strict=True):
                grams[number].add(found)

    watch(graph, list(readers), data, see, memory=memory, progress=context.progress, label=label)
    return grams


class FirstSamples:
    """The first samples of data."""

    def __init__(self, data: Iterable[Feeds], count: int) -> None:
        """Wrap `data`."""
        self._data, self._count = data, count
        self.rereadable = rereadable(data)
        known = sample_count(data)
        self.expected = None if known is None else min(known, count)

    def __iter__(self) -> Iterator[Feeds]:
        """Give at most `count` samples."""
        return islice(self._data, self._count)


class _InOrder:
    """Hands rows on in the order of the samples, in which floating-point sums are made."""

    def __init__(self) -> None:
        self._next = 0
        self._early: dict[int, list[NDArray[np.float32]]] = {}

    def put(
        self, index: int, rows: list[NDArray[np.float32]]
    ) -> Iterator[list[NDArray[np.float32]]]:
        """Take one sample's rows; yield those of all samples whose turn it is now."""
        self._early[index] = rows
        while self._next in self._early:
            self._next += 1
            yield self._early.pop(self._next - 1)
