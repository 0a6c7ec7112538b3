"""Models and artifacts by path, ready to be opened in an engine."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qgraph.data import ImageOptions
    from qgraph.graph import Graph
    from qgraph.runtime.backend import Session

DEFAULT_ENGINE = "onnxruntime-cpu"


@dataclass(frozen=True)
class Runnable:
    """A model file and the engine that will run it.

    Attributes:
        path: As the user named it.
        model: The ONNX file.
        engine: Name of a backend.
        options: `EngineOptions` by field name.
        recipe: The artifact's recipe; empty for a plain model.
        io: The artifact's inputs and outputs that are not the original's, as its manifest has them.
    """

    path: str
    model: Path
    engine: str
    options: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    io: dict[str, Any] = field(default_factory=dict)

    def open(self) -> "Session":
        """Open it.

        Raises:
            EngineError: The engine can't be used here or refuses the model.
        """
        from qgraph.errors import EngineError
        from qgraph.runtime import backend
        from qgraph.runtime.backend import EngineOptions

        engine = backend(self.engine)
        if reason := engine.unavailable():
            raise EngineError(reason, where=self.engine)
        return engine.open(self.model, EngineOptions(**self.options))

    def structure(self) -> "Graph":
        """Read the model to ask about its structure.

        Raises:
            ModelError: The file can't be read.
        """
        from qgraph.onnx_io import peek

        return peek(self.model)


def runnable(
    path: str | os.PathLike[str],
    engine: str | None = None,
    threads: int = 0,
    own: Mapping[str, Any] | None = None,
) -> Runnable:
    """Find out what to run and in which engine.

    Args:
        path: An ONNX file, an artifact's folder, or a folder with model.onnx.
        engine: Overrides the artifact's engine; a plain model runs in onnxruntime's CPU provider.
        threads: Threads, 0 for all cores.
        own: Options of the engine's own, before those of the artifact.

    Raises:
        ModelError: There is no such file.
        ArtifactError: The artifact is damaged.
        UsageError: There is no such engine.
    """
    from qgraph.artifact import MANIFEST, MODEL, Artifact
    from qgraph.errors import ModelError
    from qgraph.runtime import backend

    if engine is not None:
        backend(engine)
    place, path = Path(path), str(path)
    if (place / MANIFEST).is_file():
        artifact = Artifact.load(place)
        chosen = artifact.manifest.engine
        options = dict(chosen.options) if chosen and engine in (None, chosen.backend) else {}
        options |= _given(threads, own, options.get("engine", {}))
        name = engine or (chosen.backend if chosen else DEFAULT_ENGINE)
        manifest = artifact.manifest
        return Runnable(
            path, artifact.model_path, name, options, manifest.recipe, manifest.io or {}
        )
    model = place / MODEL if place.is_dir() else place
    if not model.is_file():
        what = "is a folder without model.onnx" if place.is_dir() else "no such file"
        raise ModelError(what, where=path, fix="name an ONNX file or an artifact")
    return Runnable(path, model, engine or DEFAULT_ENGINE, _given(threads, own, {}))


def _given(
    threads: int, own: Mapping[str, Any] | None, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of `EngineOptions` that the user gave."""
    found: dict[str, Any] = {"threads": threads} if threads else {}
    return found | ({"engine": {**before, **own}} if own else {})


def image_options(run: Runnable, recipe: str | None) -> "ImageOptions | None":
    """Return the preprocessing of images for the original: of the recipe, or of the artifact's.

    Raises:
        UsageError: The recipe is wrong.
    """
    from qgraph.data import ImageOptions
    from qgraph.recipe import load_recipe

    if recipe is not None:
        return load_recipe(recipe).images
    recorded = run.recipe.get("images")
    return ImageOptions.model_validate(recorded) if recorded else None
