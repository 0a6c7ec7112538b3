"""Runs a graph on data and sums up the inputs of layers: Gram matrices and means."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.errors import DataError
from qgraph.graph import Graph
from qgraph.passes.collect import sample_count
from qgraph.passes.collect_shards import Shard, opened, run_shards
from qgraph.passes.collect_values import Feeds, Progress, rereadable, watch
from qgraph.passes.layer_rows import Layout
from qgraph.tasks import SharedFolder

Floats = NDArray[np.float64]
# Rows are summed up in groups of about so many: small products waste time.
_ROWS = 512
# Samples that are summed up on their own before their sums are added to those of the samples in
# front: floating-point sums depend on their order, and so this order is the same for one process
# and for any number of workers, who each get so many samples.
SHARD = 32


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

    def merge(self, other: "Gram") -> None:
        """Add the sums over other rows."""
        self._multiply()
        other._multiply()
        self.products += other.products
        self.total += other.total
        self.rows += other.rows

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
        The sums, in the order of `wanted`; the same whatever the memory and the number of threads
            and workers.

    Raises:
        EngineError: onnxruntime is missing or refuses the graph.
        DataError: There is no data, or it makes an input NaN or infinite.
    """
    if context.data is None:
        raise DataError(f"{label} needs data", fix="pass --data")
    data = FirstSamples(context.data, samples)
    draw = Draw(tuple(wanted), rows, data.expected or samples, context.seed)
    if context.tasks is None:
        return sum_rows(graph, draw, data, memory=memory, progress=context.progress, label=label)
    grams = [Gram.empty(each.layout.groups, each.size) for each in wanted]
    for part in run_shards(
        graph,
        context.data,
        shard_grams,
        context,
        label=label,
        size=SHARD,
        most=samples,
        draw=draw,
        memory=memory // context.tasks.beside,
    ):
        for gram, other in zip(grams, part, strict=True):
            gram.merge(other)
    return grams


@dataclass(frozen=True)
class Draw:
    """Which rows to sum up.

    Attributes:
        wanted: Of which inputs.
        rows: How many of each; twice an input's size where that is more.
        samples: How many samples they come from.
        seed: Draws them.
    """

    wanted: tuple[Wanted, ...]
    rows: int
    samples: int
    seed: int

    def of(self, each: Wanted, index: int, value: NDArray[np.floating]) -> NDArray[np.float32]:
        """Draw rows of one sample, whose number is `index`.

        Raises:
            ValueError: A row is not finite.
        """
        share = -(-max(self.rows, 2 * each.size) // self.samples)
        rng = np.random.default_rng([self.seed, zlib.crc32(each.value.encode()), index])
        drawn = each.layout.rows(value, share, rng)
        if not np.isfinite(drawn).all():
            raise ValueError("not finite")
        return drawn


def sum_rows(
    graph: Graph,
    draw: Draw,
    data: Iterable[Feeds],
    *,
    memory: int,
    first: int = 0,
    progress: Progress = lambda *_: None,
    label: str = "",
) -> list[Gram]:
    """Sum up rows of each input over samples, the first of which has the number `first`."""
    sums = [_Sum(each) for each in draw.wanted]
    readers: dict[str, list[int]] = {}
    for number, each in enumerate(draw.wanted):
        readers.setdefault(each.value, []).append(number)
    queues = {name: _InOrder(first) for name in readers}

    def see(index: int, name: str, value: NDArray[np.floating]) -> None:
        drawn = [draw.of(draw.wanted[number], index, value) for number in readers[name]]
        for at, ready in queues[name].put(index, drawn):
            for number, found in zip(readers[name], ready, strict=True):
                sums[number].add(at, found)

    options: dict[str, Any] = {"memory": memory, "progress": progress, "first": first}
    watch(graph, list(readers), data, see, label=label, **options)
    return [each.whole() for each in sums]


def shard_grams(model: SharedFolder, shard: Shard, draw: Draw, memory: int) -> list[Gram]:
    """Sum up the rows of a shard: a task."""
    with opened(model) as graph:
        return sum_rows(graph, draw, shard, memory=memory, first=shard.first)


class _Sum:
    """Adds up rows shard by shard, so that workers who have one shard each get the same sums."""

    def __init__(self, wanted: Wanted) -> None:
        self._empty = partial(Gram.empty, wanted.layout.groups, wanted.size)
        self._total, self._part, self._shard = self._empty(), self._empty(), 0

    def add(self, index: int, rows: NDArray[np.float32]) -> None:
        if index // SHARD != self._shard:
            self._total.merge(self._part)
            self._part, self._shard = self._empty(), index // SHARD
        self._part.add(rows)

    def whole(self) -> Gram:
        self._total.merge(self._part)
        return self._total


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

    def __init__(self, first: int) -> None:
        self._next = first
        self._early: dict[int, list[NDArray[np.float32]]] = {}

    def put(
        self, index: int, rows: list[NDArray[np.float32]]
    ) -> Iterator[tuple[int, list[NDArray[np.float32]]]]:
        """Take one sample's rows; yield number and rows of all samples whose turn it is now."""
        self._early[index] = rows
        while self._next in self._early:
            self._next += 1
            yield self._next - 1, self._early.pop(self._next - 1)
