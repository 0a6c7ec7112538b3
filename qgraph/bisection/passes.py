"""Scores the graph behind every pass that changes it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qgraph import onnx_io
from qgraph.bisection.scores import Score, Scorer
from qgraph.errors import QGraphError
from qgraph.float_session import FloatSession
from qgraph.graph import Graph
from qgraph.interface import Interface
from qgraph.pipeline import Hook, Stage
from qgraph.runtime import backend


@dataclass(frozen=True)
class Behind:
    """The model behind a pass.

    Attributes:
        name: The pass, or `engine: NAME` for the artifact in its own engine.
        changed: How much the pass changed.
        score: What the model is worth there.
        exact: Whether the pass claims to keep the model's numbers.
    """

    name: str
    changed: int
    score: Score
    exact: bool = False


def scoring(
    scorer: Scorer, folder: Path, found: list[Behind], tell: Callable[[str], None], engine: str
) -> Hook:
    """Return a hook that scores what a pass left, where it changed anything.

    One file is written again and again. Passes between finding codes and writing them, such as
    `correct_bias`, count with the one that writes them. A graph that the engine can't run, as one on its way to
    another engine's kernels, has no score; that is noted.
    """
    path = folder / "behind.onnx"

    def hook(graph: Graph, stage: Stage) -> None:
        # Weights and biases that are made up for codes mean nothing before these are written.
        present = graph.facts.present()
        if not stage.report.changed or ("weights" in present and "quantized" not in present):
            return
        tell(f"scoring behind {stage.name}")
        interface = graph.facts.io or Interface()
        try:
            onnx_io.save(graph, path)
            with FloatSession(backend(engine).open(path), interface) as session:
                score = scorer.score(session)
        except QGraphError as error:
            score = Score(float("nan"), True, f"not run: {error}")
        exact = stage.numerics == "exact"
        found.append(Behind(stage.name, stage.report.changed, score, exact))

    return hook


def first_loss(found: list[Behind]) -> Behind | None:
    """Return the first pass behind which the model is not good enough; the engine comes last."""
    return next((each for each in found if not each.score.holds), None)
