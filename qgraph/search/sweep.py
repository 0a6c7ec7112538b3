"""What each unit in integers does to the model's outputs: one sweep over the segments.

The float model runs once, segment by segment. Where a unit begins, its coded segment runs beside
the float one, and what it makes different is carried through all later segments. Values that no
unit has changed are those of the float run. With n units that takes about n / 2 runs of the model,
less where branches leave most of it untouched.
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


@dataclass(frozen=True)
class Task:
    """What one process can do on its own.

    Attributes:
        folder: Where the segments lie.
        batches: The samples.
        units: Indices of the units to look at.
        metric: What the outputs are worth; None where only the error counts.
        threads: Of one run.
    """

    folder: str
    batches: tuple[Batch, ...]
    units: tuple[int, ...]
    metric: Metric | None = None
    threads: int = 1


@dataclass(frozen=True, eq=False)
class Found:
    """Sums over the samples of a task.

    Attributes:
        noise: By unit, the squared error of each output, float64 [units, outputs].
        signal: Squared size of each output about its mean, float64 [outputs].
        local: By unit, its own error relative to the signal, energies float64 [units, 2].
        rows: By unit, what the samples contribute to the metric; empty without one.
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
    wanted, count = set(task.units), len(task.units)
    place = {unit: row for row, unit in enumerate(task.units)}
    runs: list[_Run] = [_Run(dict(batch.feeds)) for batch in task.batches]
    local = np.zeros((count, 2))
    for segment in segments.parts:
        if segment.plain:
            _advance(folder, segment, runs, segment.unit in wanted, task.threads)
        for run in runs:
            if segment.unit in run.changed:
                local[place[segment.unit]] += _difference(run, segment)
            run.forget(segment)
    noise, signal = np.zeros((count, len(segments.outputs))), np.zeros(len(segments.outputs))
    rows: list[list[Contributions]] = [[] for _ in task.units]
    plain: list[Contributions] = []
    for run, batch in zip(runs, task.batches, strict=True):
        exact = {name: run.values[name] for name in segments.outputs}
        known = exact if _versus_original(task.metric) else {**batch.feeds, **batch.labels}
        signal += [_signal(array) for array in exact.values()]
        if task.metric is not None:
            plain.append(task.metric.contributions(exact, known))
        for unit in task.units:
            got = {name: run.changed.get(unit, {}).get(name, exact[name]) for name in exact}
            noise[place[unit]] += [_noise(exact[name], got[name]) for name in exact]
            if task.metric is not None:
                rows[place[unit]].append(task.metric.contributions(got, known))
    return Found(
        noise,
        signal,
        local,
        tuple(np.concatenate(each) for each in rows if each),
        np.concatenate(plain) if plain else None,
    )


class _Run:
    """The float values of one batch, and by unit those that it changes."""

    def __init__(self, feeds: Values) -> None:
        self.values = feeds
        self.changed: dict[int, Values] = {}

    def forget(self, segment: Segment) -> None:
        for name in segment.drops:
            self.values.pop(name, None)
            for values in self.changed.values():
                values.pop(name, None)


def _advance(folder: Path, segment: Segment, runs: Sequence[_Run], own: bool, threads: int) -> None:
    options = EngineOptions(threads=threads)
    with backend(ENGINE).open(folder / segment.plain, options) as session:
        for run in runs:
            for values in run.changed.values():
                if values.keys() & set(segment.reads):
                    values |= _run(session, segment, run.values | values)
        if own:
            with backend(ENGINE).open(folder / segment.coded, options) as coded:
                for run in runs:
                    run.changed[segment.unit] = _run(coded, segment, run.values)
        for run in runs:
            run.values |= _run(session, segment, run.values)


def _run(session: Session, segment: Segment, values: Mapping[str, NDArray[Any]]) -> Values:
    return session.run({name: values[name] for name in segment.reads})


def _difference(run: _Run, segment: Segment) -> NDArray[np.float64]:
    total = np.zeros(2)
    for name in segment.keeps:
        exact, got = run.values[name], run.changed[segment.unit][name]
        total += _noise(exact, got), _signal(exact)
    return total


def _noise(exact: NDArray[Any], got: NDArray[Any]) -> float:
    if exact.dtype.kind not in "f":
        return float(np.mean(exact != got)) if exact.size else 0.0
    difference = (got - exact).astype(np.float64)
    return float(np.vdot(difference, difference))


def _signal(array: NDArray[Any]) -> float:
    if array.dtype.kind not in "f":
        return 1.0
    centred = array.astype(np.float64) - array.mean(dtype=np.float64)
    return float(np.vdot(centred, centred))


def _versus_original(metric: Metric | None) -> bool:
    return metric is not None and metric.versus_original
