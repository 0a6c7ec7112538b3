"""Calibration in shards: what tasks make of their samples, and how that becomes one result."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.data import Feeds
from qgraph.encoding import Encoding, Spec
from qgraph.graph import Graph
from qgraph.passes.calibration_state import Arrays, restore, state_of
from qgraph.passes.collect import Extremes, Timing, extremes
from qgraph.passes.collect_errors import Errors, Weights, candidate_errors
from qgraph.passes.collect_heldback import HeldBack, Kept, Order
from qgraph.passes.collect_shards import Shard, opened, run_shards, shard_size
from qgraph.passes.collect_values import watch
from qgraph.passes.observers import Observer, build, observer
from qgraph.passes.observers.auto import Statistics
from qgraph.tasks import SharedFolder

_LABEL = "calibrating"


@dataclass(frozen=True)
class Seen:
    """What a task saw of its shard.

    Attributes:
        timing: What it took.
        states: By watcher, its state.
        kept: Samples to measure errors on; see `HeldBack`.
        bound: See `HeldBack`.
    """

    timing: Timing
    states: dict[str, Arrays]
    kept: Sequence[Kept] = ()
    bound: Order | None = None


def place(name: str, held: bool) -> str:
    """Under which name statistics of held or other samples of a value go."""
    return f"{int(held)} {name}"


# -- tasks -----------------------------------------------------------------------------------------


def shard_extremes(
    model: SharedFolder, shard: Shard, names: Sequence[str]
) -> tuple[Timing, list[Extremes]]:
    """Return each sample's extremes."""
    timing = Timing()
    with opened(model) as graph:
        found = list(extremes(graph, names, shard, first=shard.first, timing=timing))
    return timing, found


def shard_states(
    model: SharedFolder,
    shard: Shard,
    kind: str,
    options: Mapping[str, Any],
    specs: Mapping[str, Spec],
    memory: int,
) -> Seen:
    """Show the samples' values to new observers."""
    watchers = {n: build(observer(kind), {**options, "spec": s}) for n, s in specs.items()}

    def see(_: int, name: str, value: NDArray[np.floating]) -> None:
        watchers[name].observe(value)

    with opened(model) as graph:
        timing = watch(graph, list(specs), shard, see, memory=memory, first=shard.first)
    return Seen(timing, {name: state_of(watcher) for name, watcher in watchers.items()})


def shard_statistics(
    model: SharedFolder, shard: Shard, specs: Mapping[str, Spec], memory: int, keep: int
) -> Seen:
    """Count the values of held and of other samples; keep some to measure errors on."""
    samples = HeldBack(shard, keep)
    seen = {place(n, held): Statistics(spec) for n, spec in specs.items() for held in (False, True)}

    def count(index: int, name: str, value: NDArray[np.floating]) -> None:
        seen[place(name, samples.held[index - shard.first])].observe(value)

    with opened(model) as graph:
        timing = watch(graph, list(specs), samples, count, memory=memory, first=shard.first)
    states = {name: state_of(each) for name, each in seen.items()}
    return Seen(timing, states, samples.kept, samples.bound)


def shard_errors(
    model: SharedFolder,
    shard: Shard,
    candidates: Mapping[str, Mapping[str, Encoding]],
    weights: Weights,
    memory: int,
) -> tuple[Timing, Errors]:
    """Return the error of each candidate on each sample."""
    with opened(model) as graph:
        return candidate_errors(graph, shard, candidates, weights, memory=memory, first=shard.first)


# -- their results ---------------------------------------------------------------------------------


def observe_shards(
    graph: Graph,
    watchers: Mapping[str, Observer],
    kind: type[Observer],
    options: Mapping[str, Any],
    specs: Mapping[str, Spec],
    context: Context,
    memory: int,
) -> Timing:
    """Show all samples to the watchers; to the bit what one process makes of them."""
    assert context.data is not None
    clock = _Clock(context)
    names = list(watchers)
    size = shard_size(context.data, context.tasks.workers)
    if kind.extremes_only:
        # Observed here, sample after sample: so those that depend on order are served, too.
        for timing, found in run_shards(
            graph, context.data, shard_extremes, context, label=_LABEL, size=size, names=names
        ):
            clock.add(timing)
            for sample in found:
                for name, pair in sample.items():
                    watchers[name].observe(pair)
        return clock.total()
    for seen in run_shards(
        graph,
        context.data,
        shard_states,
        context,
        label=_LABEL,
        size=size,
        kind=kind.name,
        options={name: options[name] for name in kind.options if name in options},
        specs=specs,
        memory=memory // context.tasks.beside,
    ):
        clock.add(seen.timing)
        for name, watcher in watchers.items():
            part = build(kind, {**options, "spec": specs[name]})
            restore(part, seen.states[name])
            watcher.merge(part)
    return clock.total()


def count_shards(
    graph: Graph,
    specs: Mapping[str, Spec],
    samples: HeldBack,
    seen: Mapping[str, Statistics],
    context: Context,
    memory: int,
    keep: int,
) -> Timing:
    """Count the values of all samples into `seen`, and keep some of these in `samples`."""
    assert context.data is not None
    clock = _Clock(context)
    for found in run_shards(
        graph,
        context.data,
        shard_statistics,
        context,
        label=_LABEL,
        size=shard_size(context.data, context.tasks.workers),
        specs=specs,
        memory=memory // context.tasks.beside,
        keep=keep,
    ):
        clock.add(found.timing)
        for name, whole in seen.items():
            part = Statistics(whole.spec)
            restore(part, found.states[name])
            whole.merge(part)
        samples.merge(found.kept, found.bound)
    return clock.total()


def judge_shards(
    graph: Graph,
    kept: Sequence[Feeds],
    candidates: Mapping[str, Mapping[str, Encoding]],
    weights: Weights,
    context: Context,
    memory: int,
) -> tuple[Timing, Errors]:
    """Measure each candidate's error on each sample."""
    clock = _Clock(context)
    errors: Errors = {name: {key: [] for key in each} for name, each in candidates.items()}
    for timing, found in run_shards(
        graph,
        kept,
        shard_errors,
        context,
        label="choosing",
        size=shard_size(kept, context.tasks.workers),
        candidates=candidates,
        weights=weights,
        memory=memory // context.tasks.beside,
    ):
        clock.add(timing)
        for name, each in found.items():
            for key, values in each.items():
                errors[name][key] += values
    return clock.total(), errors


class _Clock:
    """Adds up the times of tasks that run beside each other."""

    def __init__(self, context: Context) -> None:
        self._workers = context.tasks.workers
        self._start = time.perf_counter()
        self._parts: list[Timing] = []

    def add(self, part: Timing) -> None:
        self._parts.append(part)

    def total(self) -> Timing:
        return Timing(
            samples=sum(part.samples for part in self._parts),
            runs=sum(part.runs for part in self._parts),
            seconds=time.perf_counter() - self._start,
            inference=sum(part.inference for part in self._parts) / self._workers,
            groups=max((part.groups for part in self._parts), default=1),
        )
