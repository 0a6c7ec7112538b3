"""Mixes of precisions: the calibrated model, its units, and models with each unit in a way of its own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qgraph import onnx_io
from qgraph.facts import Plan
from qgraph.graph import Graph
from qgraph.pipeline import Stage
from qgraph.search.candidates import Candidates
from qgraph.search.choice import Choice
from qgraph.search.offered import Offered
from qgraph.search.prepared import Prepared
from qgraph.search.units import Link, Unit, find_units, links
from qgraph.search.ways import CODES, DYNAMIC, FEW_BITS, FLOAT, FLOAT8, PLAIN, WIDE, Way, way
from qgraph.search.whole import Whole
from qgraph.search.workspace import Workspace
from qgraph.search.written import Written, write

Ways = tuple[tuple[str, str], ...]
"""By name of each unit, the name of its way."""


@dataclass(eq=False, kw_only=True)
class Mixes(Workspace):
    """What a search for a mix of precisions works on.

    Attributes:
        prepared: The calibrated model.
        units: What is decided.
        links: The values between units.
        offered: What units may compute in.
        options: For each unit, the ways that the integer programme chooses among.
        candidates: Whole models in other precisions.
    """

    prepared: Prepared
    units: list[Unit] = field(init=False)
    links: list[Link] = field(init=False)
    offered: Offered = field(default_factory=Offered)
    options: Sequence[Sequence[Way]] = ()
    candidates: Candidates = field(init=False)
    _mixes: dict[Ways, Whole] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the units and write the float model."""
        self._find()
        onnx_io.save(self.prepared.graph, self.folder / "fp32.onnx")
        self.candidates = Candidates(self.prepared, self.job, self.folder, self.executor)

    def take(self, offered: Offered) -> None:
        """Take what is offered; products that only floats are offered to become units too."""
        self.offered = offered
        if offered.half:
            self._find(floats=True)

    def _find(self, *, floats: bool = False) -> None:
        graph, target = self.prepared.graph, self.job.target
        self.units = find_units(graph, target, floats=floats)
        self.links = links(graph, self.units, target, floats=floats)

    def mix(self, choice: Choice) -> Whole:
        """Build the model of a choice, once."""
        return self.build(self.ways(choice), choice.loss)

    def ways(self, choice: Choice) -> Ways:
        """Return the way of each unit in a choice."""
        pairs = zip(self.units, choice.options, self.options, strict=True)
        return tuple((unit.name, ways[index].name) for unit, index, ways in pairs)

    def build(self, ways: Ways, loss: float) -> Whole:
        """Build the model with units in these ways, once; `loss` is predicted of it."""
        if ways not in self._mixes:
            self._mixes[ways] = self._built(ways, loss)
        return self._mixes[ways]

    def written(self, ways: Ways) -> Written:
        """Write the graph of a mix."""
        chosen = {name: way(each) for name, each in ways}
        return write(self.prepared, self.job, self.units, chosen, self.offered)

    def graph(self, ways: Ways) -> tuple[Graph, list[Stage]]:
        """Return the graph of a mix, and what the passes did."""
        found = self.written(ways)
        return found.graph, found.stages

    def _built(self, ways: Ways, loss: float) -> Whole:
        """Build a mix; what stands alone among floats, such as an Add, may have become one too."""
        if all(each == PLAIN.name for _, each in ways):
            return self.floating
        found = self.written(ways)
        plan: Plan = found.graph.facts.get("plan")
        real = tuple((name, _as_written(plan, name, each)) for name, each in ways)
        if all(each == PLAIN.name for _, each in real):
            return self.floating
        known = next((whole for whole in self._mixes.values() if whole.ways == real), None)
        if known is not None:
            return known
        number = len(self._mixes)
        path, judged = self.folder / f"mix{number}.onnx", None
        if found.judged is not None:
            judged = self.folder / f"mix{number}.judged.onnx"
            onnx_io.save(found.judged, judged)
        onnx_io.save(found.graph, path)
        counts = Counter(each for _, each in real)
        return Whole(
            _name(counts, number),
            _precision(counts),
            path,
            ways=real,
            loss=loss,
            what=_what(counts),
            judged=judged,
        )


def _as_written(plan: Plan, name: str, wanted: str) -> str:
    """The way that a unit really has: the plan may leave in float what is alone among floats."""
    found = way(wanted)
    if found.unit in (CODES, WIDE) and plan.nodes.get(name, ("float", ""))[0] == "float":
        return (Way(found.rest, found.rest) if found.rest != FLOAT else PLAIN).name
    return wanted


def _name(counts: Mapping[str, int], number: int) -> str:
    if set(counts) == {CODES}:
        return CODES
    if set(counts) <= {FLOAT, CODES}:
        return f"{CODES} x {counts[CODES]} (mix {number})"
    return f"mix {number}: " + ", ".join(
        f"{each} x {count}" for each, count in sorted(counts.items()) if each != FLOAT
    )


def _what(counts: Mapping[str, int]) -> str:
    if set(counts) == {CODES}:
        return "all of it that can be in integers"
    if set(counts) <= {FLOAT, CODES}:
        return f"{counts[FLOAT]} units left in float"
    return ", ".join(
        f"{count} unit{'s' * (count != 1)} in {each}" for each, count in sorted(counts.items())
    )


def _precision(counts: Mapping[str, int]) -> str:
    """The precision that a mix is an artifact of: the coarsest that it has."""
    kinds = {way(each).unit.partition(":")[0] for each in counts}
    halves = {way(each).rest for each in counts} - {FLOAT}
    ordered = (CODES, WIDE, DYNAMIC, FLOAT8, *reversed(FEW_BITS), *sorted(halves))
    return next(each for each in ordered if each in kinds or each in halves)
