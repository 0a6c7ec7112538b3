"""Runs a graph on data and reduces values to one number a channel inside the engine."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.errors import DataError
from qgraph.graph import Graph, Value
from qgraph.passes.collect import sample_count
from qgraph.passes.collect_shards import Shard, opened, run_shards, shard_size
from qgraph.passes.collect_values import Feeds
from qgraph.tasks import SharedFolder

Reduction = Literal["min", "max", "mean"]
ChannelSample = dict[str, NDArray[np.float64]]

_OPERATORS = {"min": "ReduceMin", "max": "ReduceMax", "mean": "ReduceMean"}
# From these opsets on the axes are an input, before an attribute.
AXES_INPUT_SINCE = 18


def channel_statistics(
    graph: Graph,
    axes: Mapping[str, int],
    reductions: Sequence[Reduction],
    context: Context,
    what: str,
) -> Iterator[ChannelSample]:
    """Run `graph` on each sample and yield statistics of each channel of the named values.

    The reductions run inside the engine, so nothing larger than the channels leaves it. Samples are
    looked at here, or in shards by the context's executor, with the same results.

    Args:
        graph: Graph, float or with Q/DQ; it is not changed.
        axes: By name of a float value of the outermost graph, the axis of its channels, from the
            front.
        reductions: What to compute of each channel, over all other axes.
        context: Has the data, which is read once, and is told about progress.
        what: What to call this in progress reports.

    Yields:
        One dict a sample: float64 [reductions, channels] by value name. Values that are empty in
        the sample are left out.

    Raises:
        EngineError: onnxruntime is missing or refuses the graph.
        DataError: There is no data, or a statistic is NaN or infinite. onnxruntime's ReduceMin and
            ReduceMax step over NaN, so `mean` alone finds it with certainty.
    """
    if context.data is None:
        raise DataError(f"{what} needs data", fix="pass --data")
    if context.tasks is None:
        total = sample_count(context.data)
        found = _statistics(graph, axes, reductions, context.data)
        for done, sample in enumerate(found):
            context.progress(what, done + 1, total)
            yield sample
        return
    for part in run_shards(
        graph,
        context.data,
        shard_channels,
        context,
        label=what,
        size=shard_size(context.data, context.tasks.workers),
        axes=dict(axes),
        reductions=tuple(reductions),
    ):
        yield from part


def shard_channels(
    model: SharedFolder, shard: Shard, axes: Mapping[str, int], reductions: Sequence[Reduction]
) -> list[ChannelSample]:
    """Return the statistics of each sample of a shard: a task."""
    with opened(model) as graph:
        return list(_statistics(graph, axes, reductions, shard, shard.first))


def _statistics(
    graph: Graph,
    axes: Mapping[str, int],
    reductions: Sequence[Reduction],
    data: Iterable[Feeds],
    first: int = 0,
) -> Iterator[ChannelSample]:
    from qgraph.runtime import observing_backend
    from qgraph.runtime.backend import EngineOptions

    with tempfile.TemporaryDirectory(prefix="qgraph-") as folder:
        path = Path(folder) / "observed.onnx"
        onnx_io.save(_observed(graph, axes, reductions), path)
        with observing_backend(path).open(path, EngineOptions()) as session:
            for index, feeds in enumerate(data, first):
                results = session.run(feeds)
                sample: ChannelSample = {}
                for number, name in enumerate(axes):
                    found = np.stack([results[_label(each, number)] for each in reductions]).astype(
                        np.float64
                    )
                    if _is_empty(found, reductions):
                        continue
                    if not np.isfinite(found).all():
                        raise DataError(
                            f"sample {index} makes {name!r} NaN or infinite", fix="check the data"
                        )
                    sample[name] = found
                yield sample


def rereadable(data: Any) -> bool:
    """Whether calibration samples can be iterated more than once."""
    known = getattr(data, "rereadable", None)
    return not isinstance(data, Iterator) if known is None else bool(known)


def _is_empty(found: NDArray[np.float64], reductions: Sequence[Reduction]) -> bool:
    """Whether the value had no elements: onnxruntime then gives min = inf, max = -inf."""
    if "min" not in reductions or "max" not in reductions:
        return found.size == 0
    low, high = found[reductions.index("min")], found[reductions.index("max")]
    return found.size == 0 or bool((low > high).all())


def _label(reduction: Reduction, number: int) -> str:
    return f"qgraph_channel_{reduction}_{number}"


def _observed(graph: Graph, axes: Mapping[str, int], reductions: Sequence[Reduction]) -> Graph:
    """Return a copy of `graph` whose only outputs are the statistics of the named values."""
    copy = Graph(graph.model.clone(), source=graph.source, sparse=graph.sparse)
    values = {v.name: v for v in [*copy.main.inputs, *(o for n in copy.nodes() for o in n.outputs)]}
    outputs: list[Value] = []
    for number, (name, axis) in enumerate(axes.items()):
        value = values[name]
        if copy.rank(value) is None:
            onnx_io.infer_shapes(copy)
        rank = copy.rank(value)
        if rank is None or not 0 <= axis < rank:
            raise ValueError(f"{name!r} has no known axis {axis}")
        others = [i for i in range(rank) if i != axis]
        for reduction in reductions:
            outputs.append(_reduce(copy, value, reduction, others, _label(reduction, number)))
    copy.main.outputs.clear()
    copy.main.outputs.extend(outputs)
    return copy


def _reduce(
    graph: Graph, value: Value, reduction: Reduction, others: list[int], label: str
) -> Value:
    attributes: dict[str, Any] = {"keepdims": 0}
    inputs: list[Value | None] = [value]
    if not others:  # a vector: each element is its own channel
        node = ir.Node("", "Identity", inputs, name=label)
    else:
        if graph.opset >= AXES_INPUT_SINCE:
            inputs.append(graph.constant(f"{label}_axes", np.array(others, np.int64)))
        else:
            attributes["axes"] = others
        converted = ir.convenience.convert_attributes(attributes)
        node = ir.Node("", _OPERATORS[reduction], inputs, converted, name=label)
    graph.main.append(node)
    out = node.outputs[0]
    out.name, out.type = label, value.type
    out.shape = ir.Shape([None])
    return out
