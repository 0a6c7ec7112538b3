"""What a compile writes down beside the model: manifest entries, encodings, explanations."""

import json
import os
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from qgraph import onnx_io
from qgraph.artifact import ENCODINGS, EXPLAIN, MANIFEST, Artifact
from qgraph.errors import ArtifactError
from qgraph.explain import explanation
from qgraph.file_hashes import sha256_of
from qgraph.graph import Graph
from qgraph.manifest import Manifest, Source, StageRecord
from qgraph.pipeline import Stage


def stage_record(stage: Stage) -> StageRecord:
    """Shorten what a pass did to what the manifest keeps."""
    return StageRecord(
        name=stage.name,
        seconds=round(stage.seconds, 4),
        changed=stage.report.changed,
        options=stage.options,
        refused=dict(Counter(refusal.reason for refusal in stage.report.refused)),
        warnings=stage.report.warnings,
        notes=stage.report.notes,
        layers=stage.report.layers,
    )


def write_manifest(manifest: Manifest, scratch: Path) -> None:
    """Write `manifest.json`."""
    (scratch / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")


def write_facts(graph: Graph, scratch: Path) -> None:
    """Write `encodings.json` and `explain.json`."""
    encodings = graph.facts.encodings or {}
    weights = graph.facts.weights or {}
    content: dict[str, Any] = {
        "activations": {name: encodings[name].to_json() for name in sorted(encodings)},
        "weights": {
            f"{name}:{index}": weight.encoding.to_json() | {"relative_error": weight.loss}
            for (name, index), weight in sorted(weights.items())
        },
    }
    (scratch / ENCODINGS).write_text(json.dumps(content), encoding="utf-8")
    (scratch / EXPLAIN).write_text(json.dumps(explanation(graph), indent=1), encoding="utf-8")


def packages() -> dict[str, str]:
    """Return the versions of the installed packages that decide a result."""
    names = (
        "numpy",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "onnxruntime-gpu",
        "onnxruntime-ep-openvino",
        "onnxruntime-ep-nv-tensorrt-rtx-cu13",
        "tensorrt",
        "tensorrt-rtx-cu13",
    )
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def source(original: Path, model: Any) -> Source:
    """Name, hash and size of the model that was given.

    Raises:
        ArtifactError: The file can't be read any more.
    """
    on_disk = isinstance(model, str | os.PathLike)
    return Source(
        name=original.name if on_disk else f"<{type(model).__name__}>",
        sha256=sha256_of(original),
        bytes=model_bytes(original),
        path=str(original.resolve()) if on_disk else None,
    )


def find_original(artifact: Artifact) -> Path:
    """Return the file of the model that an artifact was compiled from.

    Raises:
        ArtifactError: It is not there any more, or not the same.
    """
    noted = artifact.manifest.source
    fix = "name the original with --vs"
    if noted.path is None:
        raise ArtifactError(
            "was compiled from a model in memory", where=str(artifact.path), fix=fix
        )
    file = Path(noted.path)
    if not file.is_file():
        raise ArtifactError("the original is not there any more", where=noted.path, fix=fix)
    if source(file, file).sha256 != noted.sha256:
        raise ArtifactError(
            "the original has changed since it was compiled", where=noted.path, fix=fix
        )
    return file


def model_bytes(original: Path) -> int:
    """Bytes of a model with its external data."""
    return original.stat().st_size + onnx_io.external_bytes(original)
