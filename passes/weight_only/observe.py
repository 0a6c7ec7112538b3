"""Runs one stage on every sample, and sums up what its layers will read."""

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.errors import DataError
from qgraph.graph import Graph, Node, Value
from qgraph.passes.contrib.lowering import lower
from qgraph.passes.weight_only.boundary import Boundary
from qgraph.passes.weight_only.stages import Group, Stage
from qgraph.passes.weight_only.statistics import InputStatistics
from qgraph.runtime import observing_backend_of
from qgraph.runtime.backend import Backend, EngineOptions, Session, available_cores
from qgraph.subgraph import subgraph
from qgraph.targets.contrib import CONTRIBUTED, NOTHING

Array = NDArray[Any]
# What the quantized layers multiply by, in float.
Weights = Mapping[Value, NDArray[np.float32]]


def keep_inputs(stages: Iterable[Stage], data: Iterable[Any], boundary: Boundary) -> None:
    """Read the data once and keep the inputs that any stage reads.

    Raises:
        DataError: There are no samples.
    """
    read = {v.name or "" for stage in stages for v in stage.reads if v.is_graph_input()}
    for index, feeds in enumerate(data):
        boundary.put(index, {name: np.array(feeds[name]) for name in read})
    if not boundary.samples:
        raise DataError("the calibration data has no samples")


def run_stage(
    graph: Graph,
    stage: Stage,
    weights: Weights,
    boundary: Boundary,
    context: Context,
    label: str,
    engine: Backend | None = None,
) -> None:
    """Run a stage on all samples, one a core at a time.

    Args:
        graph: The float graph; it is not changed.
        stage: What to run.
        weights: By value, what stands in for the weights of layers quantized so far.
        boundary: Where its inputs are, and where its results and its layers' inputs go.
        context: Told about progress.
        label: What is going on.
        engine: What runs it; None chooses by the size of the part.

    Raises:
        EngineError: The engine refuses the stage.
    """
    wanted = [*stage.keeps, *(group.data for group in stage.groups)]
    computed = [v for v in dict.fromkeys(wanted) if v not in set(stage.reads)]
    if not computed:
        return
    names = [v.name or "" for v in computed]
    reads = [v.name or "" for v in stage.reads]
    first = dict(zip(stage.reads, boundary.get(0, reads).values(), strict=True))
    with opened(graph, stage.nodes, first, computed, weights, threads=1, engine=engine) as session:
        samples = (boundary.get(i, reads) for i in range(boundary.samples))
        for index, results in enumerate(_in_order(session, samples, names)):
            boundary.put(index, results)
            context.progress(label, index + 1, boundary.samples)


@contextmanager
def opened(
    graph: Graph,
    nodes: Sequence[Node],
    feeds: Mapping[Value, Array],
    outputs: Sequence[Value],
    weights: Weights,
    *,
    threads: int = 0,
    engine: Backend | None = None,
) -> Iterator[Session]:
    """Open some nodes of a graph in an engine.

    Args:
        graph: Where they are.
        nodes: In an order in which they can run.
        feeds: What comes from outside, with arrays such as it will be fed.
        outputs: What to compute.
        weights: By value, what stands in for weights.
        threads: Of one run.
        engine: What runs it; None chooses by the size of the part.
    """
    part = subgraph(graph, nodes, list(feeds), outputs, weights)
    # Shape inference may not know what running the model has shown.
    for value, array in zip(part.main.inputs, feeds.values(), strict=True):
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    with tempfile.TemporaryDirectory(prefix="qgraph-") as folder:
        size = sum(v.const_value.nbytes for v in part.initializers if v.const_value is not None)
        chosen = observing_backend_of(size) if engine is None else engine
        lower(part, CONTRIBUTED.get(chosen.name, NOTHING))
        path = Path(folder) / "part.onnx"
        onnx_io.save(part, path)
        # Nodes and values form cycles: the weights would stay until the collector comes by.
        for value in part.initializers:
            value.const_value = None
        with chosen.open(path, EngineOptions(threads=threads)) as session:
            yield session


def forget(stage: Stage, boundary: Boundary) -> None:
    """Drop what no later stage reads."""
    known = {*stage.keeps, *stage.reads}
    unread = [*stage.drops, *(g.data for g in stage.groups if g.data not in known)]
    for index in range(boundary.samples):
        boundary.drop(index, [v.name or "" for v in unread])


def summed_up(
    group: Group, boundary: Boundary, *, peaks: bool = False, device: bool = False
) -> InputStatistics:
    """Return the statistics of the input of a group; see `InputStatistics` for the options.

    Raises:
        DataError: It is NaN or infinite.
    """
    shape, name = group.layers[0].shape, group.data.name or ""
    statistics = InputStatistics(
        shape[-2], shape[0] if len(shape) == 3 else 1, peaks=peaks, device=device
    )
    for index in range(boundary.samples):
        statistics.add(boundary.get(index, [name])[name])
    if not statistics.finite():
        raise DataError(f"the data makes {name!r} NaN or infinite", fix="check the data")
    return statistics


def _in_order(
    session: Session, samples: Iterable[Mapping[str, Array]], names: list[str]
) -> Iterator[dict[str, Array]]:
    """Yield each sample's results; every core works on a sample of its own."""
    cores = available_cores()
    waiting: deque[Future[dict[str, Array]]] = deque()
    pool = ThreadPoolExecutor(cores)
    try:
        for feeds in samples:
            if len(waiting) > cores:
                yield waiting.popleft().result()
            waiting.append(pool.submit(session.run, feeds, names))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
