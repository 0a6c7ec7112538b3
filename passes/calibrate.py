"""Finds the ranges of the planned activations from data and turns them into encodings."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from qgraph.cache import open_cache
from qgraph.context import Context
from qgraph.encoding import FLOATS, Encoding, Spec, encode_range
from qgraph.errors import DataError, UsageError, unknown_name
from qgraph.facts import Plan
from qgraph.graph import Graph
from qgraph.passes.calibrate_auto import Ranges, asked, choose_ranges, resumed_line
from qgraph.passes.calibrate_shards import observe_shards
from qgraph.passes.calibration_cache import (
    calibration_key,
    data_key,
    data_place,
    keep_ranges,
    load_ranges,
)
from qgraph.passes.calibration_import import Imported, import_encodings, missing_data
from qgraph.passes.calibration_resume import Checkpoints, Progress, look_through
from qgraph.passes.collect import Timing, extremes, sample_count
from qgraph.passes.collect_values import rereadable, watch
from qgraph.passes.observers import Observer, build, observer, observers
from qgraph.passes.observers.histogram import check_bins
from qgraph.pipeline import Pass, PassReport

AUTO = "auto"
# What these minimise is counted in steps of one size, which floating-point codes do not have.
EVEN_STEPS = (AUTO, "entropy", "mse")


@dataclass(frozen=True)
class Calibrate(Pass):
    """Observe every planned activation on the calibration data.

    Attributes:
        observer: How a range is made of what was seen; see `qgraph.passes.observers`. `auto`
            computes several and takes, for each value, the one with the least error on samples
            held back (one in four, chosen by their content); it then uses all samples.
        percentile: Of `percentile`: share of all values inside the range, percent.
        norm: Of `mse`: exponent of the error.
        rate: Of `moving-average`: weight of a new sample.
        bins: Of `percentile`, `entropy` and `mse`: bins in each octave of magnitude, a power of
            two.
        memory_mb: Memory beside the model for observed values, MB. Where one sample's values take
            more, they are split into groups and the data is run once for each. A quarter of it
            bounds the samples that `auto` keeps to measure errors on.
        cache: Keep the ranges, and take those of an earlier run of the same model, data and
            options; see docs/encodings.md.
        checkpoint_s: Seconds between checkpoints, from which an interrupted run goes on; 0 for one
            after each sample. Only with `cache`.
    """

    observer: str = "mean-minmax"
    percentile: float = 99.99
    norm: float = 2.0
    rate: float = 0.01
    bins: int = 2048
    memory_mb: int = 1024
    cache: bool = True
    checkpoint_s: float = 30.0

    name: ClassVar[str] = "calibrate"
    needs: ClassVar[frozenset[str]] = frozenset({"plan"})
    gives: ClassVar[frozenset[str]] = frozenset({"ranges", "encodings"})

    def __post_init__(self) -> None:
        """Refuse unknown observers and options out of range before anything runs."""
        if self.memory_mb < 1:
            raise UsageError(f"calibrate.memory_mb is {self.memory_mb}", fix="give 1 or more")
        if not self.checkpoint_s >= 0:
            raise UsageError(f"calibrate.checkpoint_s is {self.checkpoint_s}", fix="give 0 or more")
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

        Encodings that the context brings are taken as they are; only other values are observed.

        Raises:
            DataError: There is no data, or it makes a value NaN or infinite.
            UsageError: The observer finds ranges for integers only, and codes are in float8.
        """
        plan: Plan = graph.facts.get("plan")
        report = PassReport()
        if self.observer in EVEN_STEPS and any(
            placement.spec.dtype in FLOATS for placement in plan.activations.values()
        ):
            raise UsageError(
                f"calibrate.observer={self.observer} finds ranges for integers only",
                fix="use minmax, mean-minmax, moving-average or percentile for fp8",
            )
        given = Imported({}, {})
        if context.encodings is not None:
            given = import_encodings(context.encodings, graph, plan, context, report)
            context.info(f"calibration: {report.notes[-1]}")
        missing = sorted(name for name in plan.activations if name not in given.encodings)
        if missing and context.data is None and context.encodings is not None:
            raise missing_data(context.encodings, missing)
        specs = {name: plan.activations[name].spec for name in missing}
        found = self._ranges(graph, specs, context, report) if specs else {}
        kinds = sorted(getattr(context.tasks, "processors", ()))
        if len(kinds) > 1:
            report.warnings.append(
                f"samples ran on {len(kinds)} kinds of processors ({', '.join(kinds)}): ranges may "
                "differ from one machine's in the last bits"
            )
        graph.facts.ranges = {**found, **given.ranges}
        graph.facts.encodings = encode(plan, found, given.encodings)
        report.details += [
            f"{name}: [{low:.6g}, {high:.6g}]" for name, (low, high) in found.items()
        ]
        return report

    def _ranges(
        self, graph: Graph, specs: Mapping[str, Spec], context: Context, report: PassReport
    ) -> Ranges:
        """Take the ranges from the cache, or observe the values and keep what was found."""
        if context.data is None:
            raise DataError("calibration needs data", fix="pass --data")
        store, content = (open_cache(), data_key(context.data)) if self.cache else (None, None)
        if store is None:
            return self._observe(graph, specs, context, report, None)
        options = self._deciding()
        if content is None:
            context.info(
                "calibration is not cached: only reading the data tells what it is "
                "(give files or arrays)"
            )
            checkpoints = None
            if rereadable(context.data):
                key = calibration_key(graph, specs, options, f"unread {data_place(context.data)}")
                checkpoints = Checkpoints(store, key, self.checkpoint_s, hashed=True)
            return self._observe(graph, specs, context, report, checkpoints)
        key = calibration_key(graph, specs, options, content)
        cached = load_ranges(store, key, list(specs))
        if cached is not None:
            ranges, lines = cached
            report.notes.append(f"ranges of {len(ranges)} values come from the cache")
            context.info(f"calibration: {report.notes[-1]} in {store.folder}")
            report.details += [*report.notes[-1:], *(f"then: {line}" for line in lines)]
            return ranges
        before = len(report.details)
        checkpoints = Checkpoints(store, key, self.checkpoint_s, hashed=False)
        ranges = self._observe(graph, specs, context, report, checkpoints)
        reason = keep_ranges(store, key, ranges, report.details[before:])
        if reason is not None:
            context.info(f"calibration is not cached in {store.folder}: {reason}")
        return ranges

    def _deciding(self) -> dict[str, Any]:
        """Return the options that decide a range: not those of other observers."""
        names = ("memory_mb",) if self.observer == AUTO else observer(self.observer).options
        options = self.options()
        return {name: options[name] for name in ("observer", *names) if name in options}

    def _observe(
        self,
        graph: Graph,
        specs: Mapping[str, Spec],
        context: Context,
        report: PassReport,
        checkpoints: Checkpoints | None,
    ) -> Ranges:
        assert context.data is not None
        memory = self.memory_mb << 20
        if self.observer == AUTO:
            ranges, lines = choose_ranges(graph, specs, context, checkpoints, memory=memory)
            report.details += lines
            return ranges
        kind = observer(self.observer)
        options = self.options()
        watchers: dict[str, Observer] = {
            name: build(kind, options | {"spec": spec}) for name, spec in specs.items()
        }

        if context.tasks is not None:
            timing = observe_shards(graph, watchers, kind, options, specs, context, memory)
            report.details.append(timing.line())
            return {name: asked(name, watcher.range) for name, watcher in watchers.items()}

        def look(part: Iterable[Mapping[str, Any]], start: int, progress: Progress) -> Timing:
            if kind.extremes_only:
                return _reduced(graph, watchers, part, start, progress)
            return watch(
                graph,
                list(watchers),
                part,
                lambda _, name, value: watchers[name].observe(value),
                memory=memory,
                progress=progress,
                first=start,
            )

        timing, resumed = look_through(context.data, look, watchers, checkpoints, context)
        report.details += [timing.line(), *resumed_line(resumed)]
        return {name: asked(name, watcher.range) for name, watcher in watchers.items()}


def _reduced(
    graph: Graph,
    watchers: Mapping[str, Observer],
    data: Iterable[Mapping[str, Any]],
    first: int,
    progress: Progress,
) -> Timing:
    """Show each sample's extremes to the observers."""
    total = sample_count(data)
    timing = Timing()
    for sample in extremes(graph, list(watchers), data, first=first, timing=timing):
        for name, found in sample.items():
            watchers[name].observe(found)
        progress("calibrating", timing.samples, total)
    if timing.samples == 0:
        raise DataError("the calibration data has no samples")
    return timing


def encode(
    plan: Plan, ranges: Ranges, given: Mapping[str, Encoding] | None = None
) -> dict[str, Encoding]:
    """Encode every planned activation; values of one group share the union of their ranges.

    Args:
        plan: The plan.
        ranges: By value name; those in `given` may be missing.
        given: Encodings that are settled already, whole groups at a time.
    """
    encodings = dict(given or {})
    groups: dict[str, list[str]] = {}
    for name, placement in plan.activations.items():
        if name not in encodings:
            groups.setdefault(placement.group, []).append(name)
    for members in groups.values():
        # What is known of a value holds for all data, what was seen only for these samples.
        found = [plan.activations[name].known or ranges[name] for name in members]
        low, high = min(low for low, _ in found), max(high for _, high in found)
        encoding = encode_range(low, high, plan.activations[members[0]].spec)
        encodings.update(dict.fromkeys(members, encoding))
    return encodings
