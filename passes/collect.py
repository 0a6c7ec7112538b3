"""Runs a graph on data and reduces values inside the engine: what calibration looks through."""

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph import onnx_io
from qgraph.errors import DataError
from qgraph.graph import Graph

Extremes = dict[str, NDArray[np.float64]]


@dataclass
class Timing:
    """How long looking through data took.

    Attributes:
        samples: Samples looked at.
        runs: Runs of the engine; more than `samples` where the values were split into groups.
        seconds: From beginning to end.
        inference: Of these, inside the engine.
        groups: Groups that the values were split into.
    """

    samples: int = 0
    runs: int = 0
    seconds: float = 0.0
    inference: float = 0.0
    groups: int = 1

    def line(self) -> str:
        """Samples a second and the share of time not spent in inference, for reports."""
        rate = self.samples / max(self.seconds, 1e-9)
        share = 1 - self.inference / max(self.seconds, 1e-9)
        split = f", values in {self.groups} groups" if self.groups > 1 else ""
        return (
            f"{self.samples} samples in {self.seconds:.2f} s: {rate:.1f} a second, "
            f"{share:.0%} of the time not in inference{split}"
        )


def extremes(
    graph: Graph,
    names: Sequence[str],
    data: Iterable[Mapping[str, NDArray[Any]]],
    *,
    infinite: bool = False,
    first: int = 0,
    timing: Timing | None = None,
) -> Iterator[Extremes]:
    """Run `graph` on each sample and yield every named value's least and greatest element.

    The reductions run inside the engine, so nothing larger than two numbers a value leaves it:
    keeping whole activations would take several times the time and gigabytes of memory.

    Args:
        graph: Float graph; it is not changed.
        names: Values of the outermost graph, floating point.
        data: Samples, feeds by input name.
        infinite: Whether infinite values are let through, as attention masks of -inf make them.
        first: Number of the first sample, for messages.
        timing: Takes the number of samples and the times.

    Yields:
        One dict a sample: float64 [2], (least, greatest), by value name. Empty arrays are left
        out.

    Raises:
        EngineError: onnxruntime is missing or refuses the graph.
        DataError: A value became NaN, or infinite where that is not allowed; the first such
            value is named.
    """
    from qgraph.runtime import observing_backend
    from qgraph.runtime.backend import EngineOptions

    timing = timing or Timing()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="qgraph-") as folder:
        path = Path(folder) / "observed.onnx"
        onnx_io.save(_observed(graph, names), path)
        with observing_backend(path).open(path, EngineOptions()) as session:
            for index, feeds in enumerate(data):
                begin = time.perf_counter()
                results = session.run(feeds)
                timing.inference += time.perf_counter() - begin
                sample: Extremes = {}
                for number, name in enumerate(names):
                    low = results[f"qgraph_low_{number}"]
                    high = results[f"qgraph_high_{number}"]
                    found = np.array([low, high], np.float64)
                    if low > high:
                        continue  # what onnxruntime makes of an empty array: (inf, -inf)
                    # Its ReduceMin and ReduceMax step over NaN, its ReduceSum does not.
                    nan = np.isnan(found).any() or np.isnan(results[f"qgraph_sum_{number}"])
                    finite = bool(np.isfinite(found).all())
                    if (nan and finite) or np.isnan(found).any() or not (finite or infinite):
                        raise DataError(
                            f"sample {first + index} makes {name!r} NaN or infinite",
                            fix="check the data",
                        )
                    sample[name] = found
                timing.samples = timing.runs = index + 1
                timing.seconds = time.perf_counter() - start
                yield sample


def sample_count(data: Iterable[Any]) -> int | None:
    """How many samples `data` will give, or None if only running through it can tell."""
    count: int | None = getattr(data, "expected", len(data) if isinstance(data, Sized) else None)
    return count


def _observed(graph: Graph, names: Sequence[str]) -> Graph:
    """Return a copy of `graph` whose only outputs are the extremes of the named values."""
    copy = Graph(graph.model.clone(), source=graph.source, sparse=graph.sparse)
    values = {v.name: v for v in [*copy.main.inputs, *(o for n in copy.nodes() for o in n.outputs)]}
    outputs = []
    for number, name in enumerate(names):
        value = values[name]
        for op, label in (("ReduceMin", "low"), ("ReduceMax", "high"), ("ReduceSum", "sum")):
            attributes = ir.convenience.convert_attributes({"keepdims": 0})
            node = ir.Node("", op, [value], attributes, name=f"qgraph_{label}_{number}")
            node.outputs[0].name = f"qgraph_{label}_{number}"
            node.outputs[0].type = value.type
            node.outputs[0].shape = ir.Shape(())
            copy.main.append(node)
            outputs.append(node.outputs[0])
    copy.main.outputs.clear()
    copy.main.outputs.extend(outputs)
    return copy
