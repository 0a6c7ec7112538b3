"""Finds the ranges of the planned activations from data and turns them into encodings."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph.context import Context
from qgraph.encoding import Encoding, encode_range
from qgraph.errors import DataError
from qgraph.facts import Plan
from qgraph.graph import Graph
from qgraph.passes.collect import extremes, sample_count
from qgraph.passes.observers import Observer, observer
from qgraph.pipeline import Pass, PassReport


@dataclass(frozen=True)
class Calibrate(Pass):
    """Observe every planned activation on the calibration data.

    Attributes:
        observer: How a range is made of what was seen; see `qgraph.passes.observers`.
    """

    observer: str = "mean-minmax"

    name: ClassVar[str] = "calibrate"
    needs: ClassVar[frozenset[str]] = frozenset({"plan"})
    gives: ClassVar[frozenset[str]] = frozenset({"ranges", "encodings"})

    def __post_init__(self) -> None:
        """Refuse an unknown observer before anything runs."""
        observer(self.observer)

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Write `facts.ranges` and `facts.encodings`.

        Raises:
            DataError: There is no data, or it makes a value NaN or infinite.
        """
        plan: Plan = graph.facts.get("plan")
        names = sorted(plan.activations)
        ranges = self._observe(graph, names, context) if names else {}
        graph.facts.ranges = ranges
        graph.facts.encodings = encode(plan, ranges)
        report = PassReport()
        report.details = [
            f"{name}: [{low:.6g}, {high:.6g}]" for name, (low, high) in ranges.items()
        ]
        return report

    def _observe(
        self, graph: Graph, names: list[str], context: Context
    ) -> dict[str, tuple[float, float]]:
        kind = observer(self.observer)
        watchers: dict[str, Observer] = {name: kind() for name in names}
        if context.data is None:
            raise DataError("calibration needs data", fix="pass --data")
        total = sample_count(context.data)
        seen = 0
        for sample in extremes(graph, names, context.data):
            for name, found in sample.items():
                watchers[name].observe(found)
            seen += 1
            context.progress("calibrating", seen, total)
        if seen == 0:
            raise DataError("the calibration data has no samples")
        return {name: _range(name, watcher) for name, watcher in watchers.items()}


def _range(name: str, watcher: Observer) -> tuple[float, float]:
    try:
        return watcher.range()
    except ValueError as error:
        raise DataError(
            f"{name!r} was empty in every sample", fix="pass data that reaches it, or exclude it"
        ) from error


def encode(plan: Plan, ranges: dict[str, tuple[float, float]]) -> dict[str, Encoding]:
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
