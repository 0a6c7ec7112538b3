"""Mixes of float and int8: the calibrated model, its units, and models with some of them in float."""

from dataclasses import dataclass, field

from qgraph import onnx_io
from qgraph.facts import Plan
from qgraph.search.candidates import Candidates
from qgraph.search.choice import Choice
from qgraph.search.prepared import Prepared
from qgraph.search.units import Link, Unit, find_units, links
from qgraph.search.whole import Whole
from qgraph.search.workspace import Workspace


@dataclass(eq=False, kw_only=True)
class Mixes(Workspace):
    """What a search for a mix of float and int8 works on.

    Attributes:
        prepared: The calibrated model.
        units: What is decided.
        links: The values between units.
        option_names: The names of each unit's options.
        candidates: Whole models in other precisions.
    """

    prepared: Prepared
    units: list[Unit] = field(init=False)
    links: list[Link] = field(init=False)
    option_names: list[list[str]] = field(default_factory=list)
    candidates: Candidates = field(init=False)
    _mixes: dict[tuple[str, ...], Whole] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the units and write the float model."""
        graph = self.prepared.graph
        self.units = find_units(graph, self.job.target)
        self.links = links(graph, self.units, self.job.target)
        onnx_io.save(graph, self.folder / "fp32.onnx")
        self.candidates = Candidates(self.prepared, self.job, self.folder, self.executor)

    def mix(self, choice: Choice) -> Whole:
        """Build the model of a choice, once."""
        return self.build(self.floats(choice), choice.loss)

    def build(self, floats: tuple[str, ...], loss: float) -> Whole:
        """Build the model with these nodes in float, once; `loss` is predicted of it."""
        if floats not in self._mixes:
            self._mixes[floats] = self._built(floats, loss)
        return self._mixes[floats]

    def _built(self, floats: tuple[str, ...], loss: float) -> Whole:
        """Build a mix; what stands alone among floats, such as an Add, may have become one too."""
        if len(floats) == len(self.units):
            return self.floating
        graph, _ = self.prepared.mixed(floats)
        plan: Plan = graph.facts.get("plan")
        names = [unit.name for unit in self.units]
        left = tuple(name for name in names if plan.nodes[name][0] == "float")
        if len(left) == len(names):
            return self.floating
        known = next((whole for whole in self._mixes.values() if whole.floats == left), None)
        if known is not None:
            return known
        number = len(self._mixes)
        name = f"int8 x {len(names) - len(left)} (mix {number})" if left else "int8"
        path = self.folder / f"mix{number}.onnx"
        onnx_io.save(graph, path)
        return Whole(name, "int8", path, floats=left, loss=loss)

    def floats(self, choice: Choice) -> tuple[str, ...]:
        """Names of the nodes that a choice leaves in float."""
        pairs = zip(self.units, choice.options, self.option_names, strict=True)
        return tuple(unit.name for unit, index, names in pairs if names[index] == "fp32")
