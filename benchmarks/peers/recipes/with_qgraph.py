"""qgraph itself: a recipe by name, or `calibrate OBSERVER [OPTION]` without repairs.

A recipe's time is that of the whole `qgraph.compile`: it holds samples back, measures the engines
and verifies the artifact, which no peer does. The note says how much of it the passes took.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def prepare(recipe: str) -> Callable[[Path, list[dict[str, Any]], Path], str]:
    """Import everything; return the function that is timed."""
    _import_everything()
    kind, _, observer = recipe.partition(" ")
    return _calibrated(observer) if kind == "calibrate" else _compiled(recipe)


def _import_everything() -> None:
    """Load what qgraph itself loads when it is first needed, as imports are not timed."""
    import onnxruntime  # noqa: F401

    import qgraph.compiler  # noqa: F401
    from qgraph.passes import all_passes
    from qgraph.target import targets

    all_passes()
    targets()


def _compiled(recipe: str) -> Callable[[Path, list[dict[str, Any]], Path], str]:
    import shutil

    import qgraph
    from qgraph.artifact import Artifact
    from qgraph.errors import AccuracyError

    def quantize(model: Path, feeds: list[dict[str, Any]], output: Path) -> str:
        folder = output.with_name("artifact")
        try:
            artifact = qgraph.compile(
                model, output=folder, precision="int8", recipe=recipe, data=feeds
            )
        except AccuracyError:
            artifact = Artifact.load(folder)
        shutil.copyfile(artifact.model_path, output)
        seconds = sum(stage.seconds for stage in artifact.manifest.stages)
        return f"passes {seconds:.1f} s"

    return quantize


def _calibrated(observer: str) -> Callable[[Path, list[dict[str, Any]], Path], str]:
    from benchmarks.calibration import _qgraph

    def quantize(model: Path, feeds: list[dict[str, Any]], output: Path) -> str:
        _qgraph(observer, model, feeds, output)
        return ""

    return quantize
