"""Cuts data into shards and gives them out as tasks; their results come in the data's order."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.data import DataSet, Feeds
from qgraph.errors import DataError
from qgraph.graph import Graph
from qgraph.passes.collect import sample_count
from qgraph.tasks import Executor, SharedFolder, Task

_MODEL = "observed.onnx"
# Shards for each worker, so that none waits long for the last, and samples in each at least: each
# opens the model anew. Of data of unknown length, a shard has so many samples.
_EACH, _LEAST, _UNKNOWN = 2, 8, 64


@dataclass(frozen=True)
class Shard:
    """Consecutive samples; can be read as often as wanted.

    Attributes:
        first: Number of the first one.
        count: How many.
        feeds: The samples: files that the task opens itself, or the arrays.
    """

    first: int
    count: int
    feeds: Iterable[Feeds]

    rereadable = True

    @property
    def expected(self) -> int:
        """How many samples."""
        return self.count

    def __iter__(self) -> Iterator[Feeds]:
        """Give the samples; files are not read any further."""
        return islice(self.feeds, self.count)


def shards(data: Iterable[Feeds], size: int, most: int | None = None) -> Iterator[Shard]:
    """Cut data into shards of `size` samples, the last one shorter.

    What lies in files is only named, so that each task opens it itself. Everything else (arrays,
    functions, generators, loaders) is read here and sent along.

    Args:
        data: The samples.
        size: Samples in a shard.
        most: Samples at most.

    Raises:
        DataError: There are no samples.
    """
    count = data.count if isinstance(data, DataSet) and data.portable else None
    if isinstance(data, DataSet) and count is not None:
        count = count if most is None else min(count, most)
        for first in range(0, count, size):
            end = min(first + size, count)
            yield Shard(first, end - first, data.picked(range(first, end)))
        return
    stream, first = islice(data, most), 0
    # Copies: whoever gives the samples may use their memory again.
    while part := [_copied(feeds) for feeds in islice(stream, size)]:
        yield Shard(first, len(part), part)
        first += len(part)
    if first == 0:
        raise DataError("the calibration data has no samples")


def shard_size(data: Iterable[Any], workers: int) -> int:
    """Samples in a shard, where results do not depend on it."""
    # Not `expected`, which may be no more than a limit.
    total = data.count if isinstance(data, DataSet) else sample_count(data)
    return _UNKNOWN if total is None else max(_LEAST, -(-total // (_EACH * workers)))


def run_shards(
    graph: Graph,
    data: Iterable[Feeds],
    function: Callable[..., Any],
    context: Context,
    *,
    label: str,
    size: int,
    most: int | None = None,
    **arguments: Any,
) -> Iterator[Any]:
    """Run `function(model, shard, **arguments)` for each shard, by the context's executor.

    Args:
        graph: What the function opens with `opened`; it is not changed.
        data: The samples.
        function: At the top of its module.
        context: Has the executor, and is told about progress.
        label: What is going on.
        size: Samples in a shard.
        most: Samples at most.
        arguments: Its other arguments.

    Yields:
        What the function returns, in the order of the shards.

    Raises:
        DataError: There are no samples, or a task finds something wrong with one.
        EngineError: Workers die over a task.
    """
    executor: Executor = context.tasks
    total = sample_count(data)
    if total is not None and most is not None:
        total = min(total, most)

    ends: list[int] = []

    def task(model: SharedFolder, shard: Shard) -> Task:
        ends.append(shard.first + shard.count)
        return Task.of(_key(label, shard), function, model=model, shard=shard, **arguments)

    def progress(done: int, _: int | None) -> None:
        context.progress(label, ends[done - 1], total)

    with tempfile.TemporaryDirectory(prefix="qgraph-") as folder:
        onnx_io.save(graph, Path(folder) / _MODEL)
        model = executor.share(Path(folder))
        tasks = (task(model, shard) for shard in shards(data, size, most))
        yield from executor.stream(tasks, progress)


@contextmanager
def opened(model: SharedFolder) -> Iterator[Graph]:
    """Load the graph that a task was given."""
    with model.opened() as folder:
        yield onnx_io.load(folder / _MODEL)


def _key(label: str, shard: Shard) -> str:
    return f"{label}, samples {shard.first} to {shard.first + shard.count - 1}"


def _copied(feeds: Feeds) -> Feeds:
    return {name: np.array(array) for name, array in feeds.items()}
