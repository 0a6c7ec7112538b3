"""What each unit in integers does to the model's outputs: one sweep over the segments.

The float model runs once, segment by segment. Where a unit begins, the segment with its error runs
beside the float one, and what that changes is carried through the rest of its block, segment by
segment, and through all later blocks, each in one go. Values that a
unit has not changed are those of the float run. With n units and two probes each that takes about
n runs of the model, less where branches leave most of it untouched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.metrics.metric import Contributions, Metric
from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions, Session
from qgraph.search.probes import Kind
from qgraph.search.segments import Segment, read_segments

Values = dict[str, NDArray[Any]]
ENGINE = "onnxruntime-cpu"


@dataclass(frozen=True)
class Batch:
    """Some samples put together.

    Attributes:
        feeds: Arrays by input name.
        labels: Labels by name.
    """

    feeds: Values
    labels: Values


Probe = tuple[int, Kind]
"""A unit, and where its error enters."""


@dataclass(frozen=True)
class Task:
    """What one process can do on its own.

    Attributes:
        folder: Where the segments lie.
        batches: The samples.
        probes: Those whose errors are carried to the outputs.
        nearby: Further ones, of which only the error of the unit's own results is looked at.
        metric: What the outputs are worth; None where only the error counts.
        threads: Of one run.
    """

    folder: str
    batches: tuple[Batch, ...]
    probes: tuple[Probe, ...]
    nearby: tuple[Probe, ...] = ()
    metric: Metric | None = None
    threads: int = 1


@dataclass(frozen=True, eq=False)
class Found:
    """Sums over the samples of a task.

    Attributes:
        noise: By probe, the squared error of each output, float64 [probes, outputs].
        signal: Squared size of each output, float64 [outputs].
        local: By probe, then those nearby, the squared error of the unit's own results and their
            squared size, float64 [probes + nearby, 2].
        rows: By probe, what the samples contribute to the metric; empty without one.
        plain: The same of the float model.
    """

    noise: NDArray[np.float64]
    signal: NDArray[np.float64]
    local: NDArray[np.float64]
    rows: tuple[Contributions, ...]
    plain: Contributions | None


def sweep(task: Task) -> Found:
    """Run the sweep on the samples of a task."""
    folder = Path(task.folder)
    segments = read_segments(folder)
    every, count = (*task.probes, *task.nearby), len(task.probes)
    place = {probe: row for row, probe in enumerate(every)}
    runs = [_Run(dict(batch.feeds)) for batch in task.batches]
    local = np.zeros((len(every), 2))
    for block in segments.blocks:
        earlier = [list(run.changed) for run in runs]
        _carry(folder, block.whole, runs, earlier, task.threads)
        for segment in block.segments:
            own = [(segment.unit, kind) for kind in segment.probes if (segment.unit, kind) in place]
            if segment.plain:
                _advance(folder, segment, runs, own, earlier, task.threads)
            for run, before in zip(runs, earlier, strict=True):
                for probe in own:
                    local[place[probe]] += _difference(run, segment, probe)
                    if place[probe] >= count:
                        del run.changed[probe]
                run.forget(segment, [probe for probe in run.changed if probe not in before])
        for run, before in zip(runs, earlier, strict=True):
            run.forget(block.whole, before)
    noise, signal = np.zeros((count, len(segments.outputs))), np.zeros(len(segments.outputs))
    rows: list[list[Contributions]] = [[] for _ in task.probes]
    plain: list[Contributions] = []
    for run, batch in zip(runs, task.batches, strict=True):
        exact = {name: run.values[name] for name in segments.outputs}
        known = exact if _versus_original(task.metric) else {**batch.feeds, **batch.labels}
        signal += [_signal(array) for array in exact.values()]
        if task.metric is not None:
            plain.append(task.metric.contributions(exact, known))
        for row, probe in enumerate(task.probes):
            got = exact | {k: v for k, v in run.changed[probe].items() if k in exact}
            noise[row] += [_noise(exact[name], got[name]) for name in exact]
            if task.metric is not None:
                rows[row].append(task.metric.contributions(got, known))
    return Found(
        noise,
        signal,
        local,
        tuple(np.concatenate(each) for each in rows if each),
        np.concatenate(plain) if plain else None,
    )


class _Run:
    """The float values of one batch, and by probe those that it changes."""

    def __init__(self, feeds: Values) -> None:
        self.values = feeds
        self.changed: dict[Probe, Values] = {}

    def forget(self, segment: Segment, probes: Sequence[Probe]) -> None:
        for name in segment.drops:
            self.values.pop(name, None)
            for probe in probes:
                self.changed[probe].pop(name, None)


def _carry(
    folder: Path,
    whole: Segment,
    runs: Sequence[_Run],
    earlier: Sequence[Sequence[Probe]],
    threads: int,
) -> None:
    """Carry the errors from before a block through all of it."""
    if not any(earlier) or not whole.plain:
        return
    with backend(ENGINE).open(folder / whole.plain, EngineOptions(threads=threads)) as session:
        for run, probes in zip(runs, earlier, strict=True):
            _through(session, whole, run, probes)


def _advance(
    folder: Path,
    segment: Segment,
    runs: Sequence[_Run],
    own: Sequence[Probe],
    earlier: Sequence[Sequence[Probe]],
    threads: int,
) -> None:
    """Run a segment in float, and carry the errors through it that began in its block."""
    options = EngineOptions(threads=threads)
    with backend(ENGINE).open(folder / segment.plain, options) as session:
        for run, before in zip(runs, earlier, strict=True):
            _through(session, segment, run, [p for p in run.changed if p not in before])
        for probe in own:
            with backend(ENGINE).open(folder / segment.probes[probe[1]], options) as probing:
                for run in runs:
                    run.changed[probe] = _run(probing, segment, run.values)
        for run in runs:
            run.values |= _run(session, segment, run.values)


def _through(session: Session, segment: Segment, run: _Run, probes: Sequence[Probe]) -> None:
    reads = set(segment.reads)
    for probe in probes:
        values = run.changed[probe]
        if not reads.isdisjoint(values):
            values |= _run(session, segment, run.values | values)


def _run(session: Session, segment: Segment, values: Mapping[str, NDArray[Any]]) -> Values:
    return session.run({name: values[name] for name in segment.reads})


def _difference(run: _Run, segment: Segment, probe: Probe) -> NDArray[np.float64]:
    total = np.zeros(2)
    for name in segment.keeps:
        exact, got = run.values[name], run.changed[probe][name]
        total += _noise(exact, got), _signal(exact)
    return total


def _noise(exact: NDArray[Any], got: NDArray[Any]) -> float:
    if exact.dtype.kind not in "f":
        return float(np.mean(exact != got)) if exact.size else 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        difference = (got - exact).reshape(-1)
        noise = float(np.dot(difference, difference))
    return noise if np.isfinite(noise) else np.inf  # half precision overflowed


def _signal(array: NDArray[Any]) -> float:
    if array.dtype.kind not in "f":
        return 1.0
    values = array.reshape(-1)
    return float(np.dot(values, values))


def _versus_original(metric: Metric | None) -> bool:
    return metric is not None and metric.versus_original
