"""Runs a graph on data and hands whole values out, several samples at a time."""

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph import onnx_io
from qgraph.errors import DataError
from qgraph.graph import Graph
from qgraph.passes.collect import Timing, sample_count

Feeds = Mapping[str, NDArray[Any]]
See = Callable[[int, str, NDArray[np.floating]], None]
Progress = Callable[[str, int, int | None], None]

# Samples whose values may be held at a time even where memory is short: one core computes the
# next while another looks.
AT_LEAST = 2


def rereadable(data: Iterable[Any]) -> bool:
    """Whether `data` can be iterated more than once."""
    return bool(getattr(data, "rereadable", not isinstance(data, Iterator)))


def watch(
    graph: Graph,
    names: Sequence[str],
    data: Iterable[Feeds],
    see: See,
    *,
    memory: int,
    progress: Progress = lambda *_: None,
    label: str = "calibrating",
    first: int = 0,
) -> Timing:
    """Run `graph` on each sample and show every named value to `see`.

    Each core takes a sample of its own and computes it; one at a time shows its values, while the
    others compute. Where `memory` is short, fewer samples are held at a time; where not even
    `AT_LEAST` fit, the values are split into groups and the data is run once for each group.
    Sizes are those of the first sample.

    Args:
        graph: Float graph; it is not changed.
        names: Values of the outermost graph, floating point.
        data: Samples, feeds by input name. Read in one thread; arrays may be used again for the
            next sample.
        see: Called as (sample number, name, value) from several threads, in any order of samples,
            but never twice at a time. What it makes of the values must therefore not depend on
            their order. A ValueError that it raises means that the value is NaN or
            infinite.
        memory: Bytes that values may take beside the model.
        progress: Called as (`label`, runs done, runs expected or None).
        label: What is going on.
        first: Number of the first sample.

    Returns:
        Counts and times.

    Raises:
        EngineError: onnxruntime is missing or refuses the graph.
        DataError: There are no samples, `see` refuses a value (the first such sample is named),
            or the values don't fit into `memory` and the data can be read only once.
    """
    from qgraph.runtime.backend import available_cores

    start = time.perf_counter()
    stream = iter(data)
    head = next(stream, None)
    if head is None:
        raise DataError("the calibration data has no samples")
    head = _copied(head)
    total = sample_count(data)
    sizes = _sizes(graph, names, head)
    workers = _workers(sum(sizes.values()), memory, available_cores(), total)
    groups = _groups(sizes, memory // max(workers, AT_LEAST))
    if len(groups) > 1 and not rereadable(data):
        raise DataError(
            f"the observed values of one sample need more than {memory >> 20} MB, "
            "and the data can be read only once",
            fix="raise calibrate.memory_mb, or give data that can be read again",
        )
    timing = Timing(groups=len(groups))
    expected = None if total is None else total * len(groups)
    for number, group in enumerate(groups):
        samples = chain([head], stream) if number == 0 else iter(data)
        for seconds in _run(graph, group, samples, see, workers, first):
            timing.runs += 1
            timing.inference += seconds / workers
            progress(label, timing.runs, expected)
    timing.samples = timing.runs // len(groups)
    timing.seconds = time.perf_counter() - start
    return timing


def _workers(size: int, memory: int, cores: int, samples: int | None) -> int:
    """How many samples to work on at a time, if the values of one take `size` bytes."""
    fitting = max(memory // max(size, 1), AT_LEAST)
    return max(1, min(cores, fitting, cores if samples is None else samples))


def _run(
    graph: Graph,
    names: Sequence[str],
    data: Iterable[Feeds],
    see: See,
    workers: int,
    first: int,
) -> Iterator[float]:
    """Run all samples for one group of values; after each yield the engine's seconds."""
    from qgraph.runtime import observing_backend
    from qgraph.runtime.backend import EngineOptions, available_cores

    inputs = {value.name for value in graph.inputs}
    computed = [name for name in names if name not in inputs]
    # Many short numpy calls from several threads would spend their time handing Python's lock to
    # one another: one thread looks at a time, while the others are inside the engine.
    looking = Lock()
    options = EngineOptions(threads=max(1, available_cores() // workers))

    def work(index: int, feeds: Feeds) -> float:
        start = time.perf_counter()
        results = session.run(feeds, computed or None)
        seconds = time.perf_counter() - start
        with looking:
            for name in names:
                # Dropped once it was seen: the engine's memory is free again for other samples.
                value = feeds[name] if name in inputs else results.pop(name)
                _show(see, index, name, value)
        return seconds

    with tempfile.TemporaryDirectory(prefix="qgraph-") as folder:
        path = Path(folder) / "observed.onnx"
        onnx_io.save(_with_outputs(graph, computed or [graph.outputs[0].name or ""]), path)
        with observing_backend(path).open(path, options) as session:
            pool = ThreadPoolExecutor(workers)
            waiting: deque[Future[float]] = deque()
            try:
                for index, feeds in enumerate(data, first):
                    # One more waits for each worker, as samples don't end in their order.
                    if len(waiting) == 2 * workers:
                        yield waiting.popleft().result()
                    waiting.append(pool.submit(work, index, _copied(feeds)))
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)


def _show(see: See, index: int, name: str, value: NDArray[Any]) -> None:
    try:
        see(index, name, value)
    except ValueError as error:
        raise DataError(
            f"sample {index} makes {name!r} NaN or infinite", fix="check the data"
        ) from error


def _copied(feeds: Feeds) -> dict[str, NDArray[Any]]:
    """Copy a sample: whoever gives it may use its memory again for the next."""
    return {name: np.array(array) for name, array in feeds.items()}


def _sizes(graph: Graph, names: Sequence[str], feeds: Feeds) -> dict[str, int]:
    """Bytes of each named value for one sample, in the order in which they are computed."""
    from qgraph.runtime import observing_backend
    from qgraph.runtime.backend import EngineOptions

    wanted = set(names)
    sizes = {
        value.name or "": np.asarray(feeds[value.name or ""]).nbytes
        for value in graph.inputs
        if value.name in wanted and value.name in feeds
    }
    computed = [name for name in names if name not in sizes]
    if computed:
        copy, outputs = _with_sizes(graph, computed)
        with tempfile.TemporaryDirectory(prefix="qgraph-") as folder:
            path = Path(folder) / "sizes.onnx"
            onnx_io.save(copy, path)
            with observing_backend(path).open(path, EngineOptions()) as session:
                results = session.run(feeds)
        sizes |= {name: 4 * int(results[output]) for name, output in outputs.items()}
    order = {value.name: i for i, value in enumerate(_values(graph))}
    return dict(sorted(sizes.items(), key=lambda item: order[item[0]]))


def _groups(sizes: Mapping[str, int], memory: int) -> list[list[str]]:
    """Cut the values, in their order, into groups that fit; one that never fits stands alone."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = memory
        groups[-1].append(name)
        room -= size
    return groups


def _values(graph: Graph) -> list[ir.Value]:
    return [*graph.main.inputs, *(out for node in graph.nodes() for out in node.outputs)]


def _with_outputs(graph: Graph, names: Sequence[str]) -> Graph:
    """Return a copy of `graph` whose only outputs are the named values."""
    copy = Graph(graph.model.clone(), source=graph.source, sparse=graph.sparse)
    values = {value.name: value for value in _values(copy)}
    copy.main.outputs.clear()
    copy.main.outputs.extend(values[name] for name in names)
    return copy


def _with_sizes(graph: Graph, names: Sequence[str]) -> tuple[Graph, dict[str, str]]:
    """Return a copy that gives the named values' element counts, and its outputs by name."""
    copy = Graph(graph.model.clone(), source=graph.source, sparse=graph.sparse)
    values = {value.name: value for value in _values(copy)}
    found: dict[str, str] = {}
    outputs = []
    for number, name in enumerate(names):
        node = ir.Node("", "Size", [values[name]], name=f"qgraph_size_{number}")
        output = node.outputs[0]
        output.name = found[name] = f"qgraph_size_{number}"
        output.type, output.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(())
        copy.main.append(node)
        outputs.append(output)
    copy.main.outputs.clear()
    copy.main.outputs.extend(outputs)
    return copy, found
