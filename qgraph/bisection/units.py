"""Scores every unit in integers: alone, and together with those in front of it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qgraph import onnx_io
from qgraph.bisection.minimal import smallest_set
from qgraph.bisection.scores import Score, Scorer
from qgraph.runtime import backend
from qgraph.search.prepared import Prepared
from qgraph.search.units import Unit

Tell = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class UnitScore:
    """One unit.

    Attributes:
        name: Name of its node.
        op_type: Its operator.
        alone: Score of the model in which it alone is in integers.
        accumulated: Score of the model in which it and all units in front of it are.
    """

    name: str
    op_type: str
    alone: Score
    accumulated: Score


@dataclass(eq=False)
class Mixes:
    """Builds and scores mixes of one model, each once.

    Attributes:
        prepared: The calibrated model.
        units: What is in integers or not.
        scorer: Says what a mix is worth.
        folder: For the model that is being scored.
        engine: Name of the backend that runs it.
        scored: By names left in float, what was found.
    """

    prepared: Prepared
    units: Sequence[Unit]
    scorer: Scorer
    folder: Path
    engine: str
    scored: dict[frozenset[str], Score] = field(default_factory=dict)

    def without(self, floats: Collection[str]) -> Score:
        """Score the model with these units in float."""
        key = frozenset(floats)
        if key not in self.scored:
            graph, _ = self.prepared.mixed(key)
            path = self.folder / "mix.onnx"
            onnx_io.save(graph, path)
            with backend(self.engine).open(path) as session:
                self.scored[key] = self.scorer.score(session)
        return self.scored[key]


def score_units(mixes: Mixes, tell: Tell) -> list[UnitScore]:
    """Score each unit alone and accumulated, in graph order."""
    names = [unit.name for unit in mixes.units]
    found = []
    for index, unit in enumerate(mixes.units):
        alone = mixes.without([name for name in names if name != unit.name])
        accumulated = mixes.without(names[index + 1 :])
        found.append(UnitScore(unit.name, unit.node.op_type, alone, accumulated))
        tell("scoring units", index + 1, len(names))
    return found


def guilty(mixes: Mixes, scores: Sequence[UnitScore]) -> list[str] | None:
    """Return the smallest set of units that must stay in float; see `smallest_set`."""
    ordered = sorted(scores, key=lambda each: -mixes.scorer.worse(each.alone))
    return smallest_set([each.name for each in ordered], lambda floats: mixes.without(floats).holds)
