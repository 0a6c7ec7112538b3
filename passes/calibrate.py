"""Finds the ranges of the planned activations from data and turns them into encodings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.encoding import Encoding, encode_range
from qgraph.errors import DataError, UsageError, unknown_name
from qgraph.facts import Plan
from qgraph.graph import Graph
from qgraph.passes.collect import Timing, extremes, sample_count
from qgraph.passes.collect_errors import channel_weights, encoding_errors
from qgraph.passes.collect_heldback import HeldBack
from qgraph.passes.collect_values import watch
from qgraph.passes.observers import Observer, build, observer, observers
from qgraph.passes.observers.auto import Statistics, choose
from qgraph.passes.observers.histogram import check_bins
from qgraph.pipeline import Pass, PassReport

_Found = TypeVar("_Found")
AUTO = "auto"
Ranges = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Calibrate(Pass):
    """Observe every planned activation on the calibration data.

    Attributes:
        observer: How a range is made of what was seen; see `qgraph.passes.observers`. `auto`
            computes them all and takes, for each value, the one with the least error on samples
            held back (one in four, chosen by their content); it then uses all samples.
        percentile: Of `percentile`: share of all values inside the range, percent.
        norm: Of `mse`: exponent of the error.
        rate: Of `moving-average`: weight of a new sample.
        bins: Of observers that count values: bins in each octave of magnitude, a power of two.
        memory_mb: Memory beside the model for observed values, MB. Where one sample's values take
            more, they are split into groups and the data is run once for each. A quarter of it
            bounds the samples that `auto` keeps to measure errors on.
    """

    observer: str = "mean-minmax"
    percentile: float = 99.99
    norm: float = 2.0
    rate: float = 0.01
    bins: int = 2048
    memory_mb: int = 1024

    name: ClassVar[str] = "calibrate"
    needs: ClassVar[frozenset[str]] = frozenset({"plan"})
    gives: ClassVar[frozenset[str]] = frozenset({"ranges", "encodings"})

    def __post_init__(self) -> None:
        """Refuse unknown observers and options out of range before anything runs."""
        if self.memory_mb < 1:
            raise UsageError(f"calibrate.memory_mb is {self.memory_mb}", fix="give 1 or more")
        try:
            check_bins(self.bins)
            if self.observer not in observers() and self.observer != AUTO:
                raise unknown_name("observer", self.observer, [*observers(), AUTO])
            if self.observer != AUTO:
                build(observer(self.observer), self.options())
        except ValueError as error:
            raise UsageError(f"calibrate: {error}") from error

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Write `facts.ranges` and `facts.encodings`.

        Raises:
            DataError: There is no data, or it makes a value NaN or infinite.
        """
        plan: Plan = graph.facts.get("plan")
        report = PassReport()
        ranges = self._observe(graph, plan, context, report) if plan.activations else {}
        graph.facts.ranges = ranges
        graph.facts.encodings = encode(plan, ranges)
        report.details += [
            f"{name}: [{low:.6g}, {high:.6g}]" for name, (low, high) in ranges.items()
        ]
        return report

    def _observe(self, graph: Graph, plan: Plan, context: Context, report: PassReport) -> Ranges:
        if context.data is None:
            raise DataError("calibration needs data", fix="pass --data")
        if self.observer == AUTO:
            return self._choose(graph, plan, context, report)
        kind = observer(self.observer)
        options = self.options()
        watchers: dict[str, Observer] = {
            name: build(kind, options | {"spec": plan.activations[name].spec})
            for name in sorted(plan.activations)
        }
        if kind.extremes_only:
            timing = self._reduced(graph, watchers, context)
        else:
            timing = watch(
                graph,
                list(watchers),
                context.data,
                lambda _, name, value: watchers[name].observe(value),
                memory=self.memory_mb << 20,
                progress=context.progress,
            )
        report.details.append(timing.line())
        return {name: _range(name, watcher.range) for name, watcher in watchers.items()}

    def _choose(self, graph: Graph, plan: Plan, context: Context, report: PassReport) -> Ranges:
        """Take each value's range from the observer with the least error on samples held back."""
        assert context.data is not None
        names = sorted(plan.activations)
        memory = self.memory_mb << 20
        samples = HeldBack(context.data, memory // 4)
        # By name, statistics of the samples that are not held back, and of those that are.
        seen = {
            name: [Statistics(plan.activations[name].spec, self.bins) for _ in range(2)]
            for name in names
        }

        def count(index: int, name: str, value: NDArray[np.floating]) -> None:
            seen[name][samples.held[index]].observe(value)

        timing = watch(graph, names, samples, count, memory=memory, progress=context.progress)
        report.details.append(timing.line())
        candidates = {}
        for name, (rest, held) in seen.items():
            ranges = _range(name, (held if rest.empty else rest).candidates)
            spec = plan.activations[name].spec
            candidates[name] = {key: encode_range(*found, spec) for key, found in ranges.items()}
        values = {
            v.name: v for v in [*graph.inputs, *(o for n in graph.nodes() for o in n.outputs)]
        }
        weights = {name: channel_weights(graph, values[name]) for name in names}
        errors: dict[str, dict[str, list[float]]] = {
            name: {key: [] for key in found} for name, found in candidates.items()
        }

        def judge(_: int, name: str, value: NDArray[np.floating]) -> None:
            if value.size:
                found = encoding_errors(value, candidates[name], weights[name])
                for key, error in found.items():
                    errors[name][key].append(error)

        kept = samples.samples
        timing = watch(
            graph, names, kept, judge, memory=memory, progress=context.progress, label="choosing"
        )
        report.details.append(f"{len(kept)} samples held back: {timing.line()}")
        ranges = {}
        for name, (rest, held) in seen.items():
            method = choose(errors[name])
            report.details.append(f"{name}: {method}")
            rest.merge(held)
            ranges[name] = rest.range(method)
        return ranges

    def _reduced(self, graph: Graph, watchers: dict[str, Observer], context: Context) -> Timing:
        """Show each sample's extremes to the observers."""
        assert context.data is not None
        total = sample_count(context.data)
        timing = Timing()
        for sample in extremes(graph, list(watchers), context.data, timing=timing):
            for name, found in sample.items():
                watchers[name].observe(found)
            context.progress("calibrating", timing.samples, total)
        if timing.samples == 0:
            raise DataError("the calibration data has no samples")
        return timing


def _range(name: str, ask: Callable[[], _Found]) -> _Found:
    try:
        return ask()
    except ValueError as error:
        raise DataError(
            f"{name!r} was empty in every sample", fix="pass data that reaches it, or exclude it"
        ) from error


def encode(plan: Plan, ranges: Ranges) -> dict[str, Encoding]:
    """Encode every planned activation; values of one group share the union of their ranges."""
    groups: dict[str, list[str]] = {}
    for name, placement in plan.activations.items():
        groups.setdefault(placement.group, []).append(name)
    encodings = {}
    for members in groups.values():
        low = min(ranges[name][0] for name in members)
        high = max(ranges[name][1] for name in members)
        encoding = encode_range(low, high, plan.activations[members[0]].spec)
        encodings.update(dict.fromkeys(members, encoding))
    return encodings
