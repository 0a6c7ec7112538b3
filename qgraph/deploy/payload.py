"""What is deployed: an artifact that was checked, its model's files, inputs and outputs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgraph.artifact import MODEL, Artifact
from qgraph.deploy.example import find_example, first_sample, takes_zeros
from qgraph.deploy.remarks import Remarks
from qgraph.errors import ArtifactError, EngineError
from qgraph.file_hashes import check_inside
from qgraph.ledger import read_ledger
from qgraph.runtime.backend import EngineOptions, TensorInfo
from qgraph.text import few

if TYPE_CHECKING:
    from qgraph.data import Feeds
    from qgraph.graph import Graph
    from qgraph.manifest import Manifest

PLAN = "engine.plan"
PLAN_RECORD = "engine.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Payload:
    """An artifact ready to be handed over.

    Attributes:
        artifact: It.
        sha256: Hash of its manifest.
        model: The ONNX file and its external data.
        plan: The TensorRT engine, where there is one.
        plan_record: What is known of it: `library`, `version`, `profiles`; empty where nothing is.
        tokenizer: A decoder's tokenizer files.
        inputs: What a caller feeds, as onnxruntime sees the model.
        outputs: What it gives.
        rankless: Outputs and inputs whose number of axes is unknown.
        opset: Version of its operators.
        example: Feeds that the model takes: the data's first sample, or some that it was seen to
            run on; None where none were found.
        sampled: Whether the example is the data's.
        zeros: Whether it was seen to take zeros of the same shapes too.
        remarks: What the user should know.
    """

    artifact: Artifact
    sha256: str
    model: tuple[Path, ...]
    plan: Path | None
    plan_record: dict[str, Any]
    tokenizer: tuple[Path, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    rankless: frozenset[str]
    opset: int
    example: "Feeds | None" = None
    sampled: bool = False
    zeros: bool = False
    remarks: Remarks = field(default_factory=Remarks)

    @property
    def manifest(self) -> "Manifest":
        """The artifact's manifest."""
        return self.artifact.manifest

    @property
    def engine(self) -> str:
        """The engine that it was made for: the fastest one, else the first of its target's."""
        from qgraph.target import target

        if self.manifest.engine is not None:
            return self.manifest.engine.backend
        return next(iter(target(self.manifest.target).engines), "")

    @property
    def options(self) -> EngineOptions:
        """The options that its engine was fastest with; those that are unknown here are left out."""
        chosen = self.manifest.engine
        known = EngineOptions.__dataclass_fields__
        options = chosen.options if chosen else {}
        return EngineOptions(**{key: value for key, value in options.items() if key in known})

    @property
    def own_options(self) -> dict[str, Any]:
        """Options that only its engine has; empty where the manifest has none."""
        chosen = self.manifest.engine
        own = chosen.options.get("engine") if chosen else None
        return own if isinstance(own, dict) else {}


def load_payload(folder: Path, *, force: bool = False, data: str | None = None) -> Payload:
    """Read and check an artifact.

    Args:
        folder: A folder that `compile` wrote.
        force: Take one that missed its accuracy floor, or was changed.
        data: Samples, of which the first is taken for an example; see `qgraph.data.open_data`.

    Raises:
        ArtifactError: It is no artifact, failed or was changed, or its model's files are not in it.
        ModelError: The model can't be read.
        DataError, EngineError: The data can't be read or does not fit; the model fails on it.
    """
    from qgraph import onnx_io

    if folder.is_file():
        raise ArtifactError(
            "is a file, no artifact", where=str(folder), fix="compile the model first"
        )
    artifact = Artifact.load(folder)
    warnings = _check_accuracy(artifact, force)
    ledger = read_ledger(folder)
    warnings += _check_files(artifact, force)
    if (folder / PLAN).exists() and PLAN not in artifact.manifest.files:
        warnings.append(f"{PLAN} is not in the manifest: nothing says where it comes from")
    graph = onnx_io.peek(artifact.model_path)
    model = tuple(_inside(folder, name) for name in (MODEL, *_external(artifact.model_path)))
    seen = _look(artifact, graph, data)
    return Payload(
        artifact=artifact,
        sha256=ledger.sha256,
        model=model,
        plan=_inside(folder, PLAN) if (folder / PLAN).exists() else None,
        plan_record=_plan_record(artifact),
        tokenizer=tuple(_inside(folder, name) for name in TOKENIZER if (folder / name).exists()),
        inputs=seen.inputs,
        outputs=seen.outputs,
        rankless=frozenset(
            value.name or ""
            for value in (*graph.inputs, *graph.outputs)
            if graph.shape(value) is None
        ),
        opset=graph.opset,
        example=seen.example,
        sampled=data is not None,
        zeros=seen.zeros,
        remarks=Remarks(warnings, seen.notes),
    )


def _check_accuracy(artifact: Artifact, force: bool) -> list[str]:
    accuracy = artifact.manifest.accuracy
    if accuracy is None or accuracy.passed:
        return []
    line = f"missed its accuracy floor ({few(accuracy.failures)})"
    if not force:
        raise ArtifactError(
            line,
            where=str(artifact.path),
            fix="compile a more accurate one, or deploy it anyway with --force",
        )
    return [f"the artifact {line}"]


def _check_files(artifact: Artifact, force: bool) -> list[str]:
    """Compare the files with the manifest; an artifact without hashes gives a warning."""
    if all(record.sha256 is None for record in artifact.manifest.files.values()):
        return ["the manifest has no hashes (an older qgraph wrote it), so no file was checked"]
    found = read_ledger(artifact.path).changes()
    if not found.broken:
        return []
    lines = [f"{name} {what}" for name, what in found.changed.items()]
    line = few([*lines, *(f"{name} is missing" for name in found.missing)])
    if not force:
        raise ArtifactError(
            f"has changed since it was compiled: {line}",
            where=str(artifact.path),
            fix="compile it again, or deploy it as it is with --force",
        )
    return [f"the artifact has changed since it was compiled: {line}"]


def _external(model: Path) -> list[str]:
    from qgraph import onnx_io

    return onnx_io.external_files(model)


def _plan_record(artifact: Artifact) -> dict[str, Any]:
    found = artifact.read_json(PLAN_RECORD)
    return found if isinstance(found, dict) else {}


def _inside(folder: Path, name: str) -> Path:
    """A plain file in the artifact.

    Raises:
        ArtifactError: The name leads out, or it is a link, or not there.
    """
    check_inside(name, where=str(folder / MODEL))
    path = folder / name
    parts = [path, *path.parents][: len(Path(name).parts)]
    if not path.is_file() or any(part.is_symlink() for part in parts):
        raise ArtifactError(
            f"{name} is missing, or no plain file", where=str(folder), fix="compile it again"
        )
    return path


@dataclass(frozen=True)
class _Seen:
    """What opening and running the model told."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    example: "Feeds | None" = None
    zeros: bool = False
    notes: list[str] = field(default_factory=list)


def _look(artifact: Artifact, graph: "Graph", data: str | None) -> _Seen:
    """Open the model: servers compare inputs and outputs with what onnxruntime infers of them."""
    from qgraph.runtime import backend

    try:
        session = backend("onnxruntime-cpu").open(artifact.model_path, EngineOptions())
    except EngineError as error:
        note = f"onnxruntime's CPU provider can't open the model here ({error.what})"
        inputs = tuple(graph.signature())
        example = None if data is None else first_sample(artifact, inputs, data)
        return _Seen(inputs, tuple(graph.results()), example, notes=[note])
    with session:
        if data is not None:
            example = first_sample(artifact, session.inputs, data)
            session.run(example)
        else:
            example = find_example(session, graph)
        if example is None:
            notes = ["no inputs were found that the model takes; --data D gives some"]
            return _Seen(session.inputs, session.outputs, notes=notes)
        return _Seen(session.inputs, session.outputs, example, takes_zeros(session, example))
