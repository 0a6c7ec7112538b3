"""qgraph: trained ONNX model in, fastest engine that still answers correctly out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from qgraph.artifact import Artifact as Artifact
    from qgraph.bisection import Bisection as Bisection
    from qgraph.bisection import bisect as bisect
    from qgraph.calibration import calibrate as calibrate
    from qgraph.compiler import compile as compile
    from qgraph.context import Context as Context
    from qgraph.errors import QGraphError as QGraphError
    from qgraph.evaluation import Evaluation as Evaluation
    from qgraph.evaluation import evaluate as evaluate
    from qgraph.generation import generate as generate
    from qgraph.graph import Graph as Graph
    from qgraph.onnx_io import load as load
    from qgraph.onnx_io import save as save
    from qgraph.pipeline import Fusion as Fusion
    from qgraph.pipeline import Pass as Pass
    from qgraph.pipeline import PassReport as PassReport
    from qgraph.pipeline import Pipeline as Pipeline
    from qgraph.pipeline import Reject as Reject
    from qgraph.recipe import Recipe as Recipe
    from qgraph.runtime.backend import Session as Session
    from qgraph.search import compile_within as compile_within

__version__ = "0.1.0"

# Loaded on first use, so that `qgraph --help` does not wait for onnx.
_HOMES = {
    "Artifact": "qgraph.artifact",
    "Bisection": "qgraph.bisection",
    "Context": "qgraph.context",
    "Evaluation": "qgraph.evaluation",
    "Fusion": "qgraph.pipeline",
    "Graph": "qgraph.graph",
    "Pass": "qgraph.pipeline",
    "PassReport": "qgraph.pipeline",
    "Pipeline": "qgraph.pipeline",
    "QGraphError": "qgraph.errors",
    "Recipe": "qgraph.recipe",
    "Reject": "qgraph.pipeline",
    "Session": "qgraph.runtime.backend",
    "bisect": "qgraph.bisection",
    "calibrate": "qgraph.calibration",
    "compile": "qgraph.compiler",
    "compile_within": "qgraph.search",
    "evaluate": "qgraph.evaluation",
    "generate": "qgraph.generation",
    "load": "qgraph.onnx_io",
    "save": "qgraph.onnx_io",
}

__all__ = [
    "Artifact",
    "Bisection",
    "Context",
    "Evaluation",
    "Fusion",
    "Graph",
    "Pass",
    "PassReport",
    "Pipeline",
    "QGraphError",
    "Recipe",
    "Reject",
    "Session",
    "__version__",
    "bisect",
    "calibrate",
    "compile",
    "compile_within",
    "evaluate",
    "generate",
    "load",
    "open",
    "save",
]


def open(path: "str | os.PathLike[str]") -> "Session":
    """Open a compiled artifact for inference.

    Args:
        path: Folder that `qgraph compile` wrote.

    Returns:
        A session: a context manager whose `run(feeds)` gives a dict of arrays by output name.

    Raises:
        ArtifactError: There is no artifact, or it is damaged.
        EngineError: None of its target's engines can be used here.
    """
    from qgraph.artifact import Artifact

    return Artifact.load(path).open()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qgraph' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
