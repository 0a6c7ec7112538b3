"""An artifact: a folder with the model, its manifest, encodings and explanations."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from qgraph.errors import ArtifactError, EngineError, QGraphError
from qgraph.manifest import SCHEMA_VERSION, Manifest

if TYPE_CHECKING:
    from qgraph.runtime.backend import Session

MODEL = "model.onnx"
MANIFEST = "manifest.json"
ENCODINGS = "encodings.json"
EXPLAIN = "explain.json"


class Artifact:
    """A compiled model on disk.

    Attributes:
        path: Its folder.
        manifest: What it says about itself.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Use `Artifact.load` instead."""
        self.path, self.manifest = path, manifest

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Artifact":
        """Open an artifact's folder.

        Raises:
            ArtifactError: There is no artifact, or its manifest can't be understood.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        if not (folder / MODEL).is_file():
            raise ArtifactError(f"{MODEL} is missing", where=str(folder), fix="compile it again")
        return cls(folder, manifest)

    @property
    def model_path(self) -> Path:
        """The ONNX file, which onnxruntime loads without qgraph."""
        return self.path / MODEL

    def read_json(self, name: str) -> Any:
        """Return the content of one of the artifact's JSON files, or None if it has none."""
        file = self.path / name
        try:
            return json.loads(file.read_bytes()) if file.is_file() else None
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{name} is damaged", where=str(self.path)) from error

    def open(self) -> "Session":
        """Open it in the engine that was fastest, or the first of its target's that runs here.

        Raises:
            EngineError: No engine of the target can be used here.
        """
        from qgraph.runtime import backend
        from qgraph.runtime.backend import EngineOptions
        from qgraph.target import target

        reasons = []
        chosen = self.manifest.engine
        if chosen is not None:
            engine = backend(chosen.backend)
            reason = engine.unavailable()
            if reason is None:
                return engine.open(self.model_path, EngineOptions(**chosen.options))
            reasons.append(reason)
        wanted = target(self.manifest.target)
        if not wanted.engines:
            reasons.append(wanted.no_engine)
        for name in wanted.engines:
            if chosen is not None and name == chosen.backend:
                continue
            reason = backend(name).unavailable()
            if reason is None:
                return backend(name).open(self.model_path, EngineOptions())
            reasons.append(reason)
        raise EngineError("no engine can run it here", where=str(self.path), fix="; ".join(reasons))


def read_manifest(folder: Path) -> Manifest:
    """Read what an artifact says about itself, whatever has become of its files.

    Raises:
        ArtifactError: There is no artifact, or its manifest can't be understood.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise ArtifactError(
            "is no artifact (it has no manifest.json)",
            where=str(folder),
            fix="name a folder that `qgraph compile` wrote",
        )
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except (pydantic.ValidationError, OSError) as error:
        found = _schema_version(file)
        if found is not None and found > SCHEMA_VERSION:
            raise ArtifactError(
                f"was written by a newer qgraph (schema {found})",
                where=str(folder),
                fix="upgrade qgraph",
            ) from error
        raise ArtifactError("manifest.json is damaged", where=str(folder)) from error


def check_output(path: Path) -> None:
    """Refuse an output folder that holds something else than an artifact.

    Raises:
        ArtifactError: The folder is in use, or a file, or its parent can't be written.
    """
    if path.is_symlink() or path.is_file():
        raise ArtifactError("output is a file", where=str(path), fix="name a folder")
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise ArtifactError(
            "output folder is in use and is no artifact",
            where=str(path),
            fix="choose another folder with -o",
        )
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise ArtifactError("can't write here", where=str(parent), fix="choose another -o")


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """Give a scratch folder that becomes the artifact `path` when the block ends well.

    Until then an older artifact at `path` stays as it is.

    Raises:
        ArtifactError: The output folder is in use, or the disk is full.
    """
    check_output(path)
    with staged(path) as scratch:
        yield scratch


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Give a scratch folder that takes the place of `path` when the block ends well.

    If the block fails, the scratch folder is removed and `path` is as it was.

    Raises:
        ArtifactError: It can't be written, or the disk is full.
    """
    path = path.absolute()
    made = [folder for folder in reversed(path.parents) if not folder.exists()]
    scratch: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield scratch
        _publish(scratch, path)
    except BaseException as error:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for folder in reversed(made):
            # Only folders that this call made, and only while nobody put anything in them.
            try:
                folder.rmdir()
            except OSError:
                break
        if isinstance(error, QGraphError) and scratch is not None:
            # The scratch folder's name means nothing to the user.
            error.where = error.where.replace(str(scratch), str(path))
        if isinstance(error, OSError):
            raise ArtifactError(
                f"can't write: {error.strerror or error}", where=str(path)
            ) from error
        raise


def _publish(scratch: Path, path: Path) -> None:
    scratch.chmod(0o755)
    if not path.exists():
        scratch.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent)) / path.name
    path.rename(old)
    try:
        scratch.rename(path)
    except BaseException:
        old.rename(path)
        raise
    finally:
        if path.exists():
            shutil.rmtree(old.parent, ignore_errors=True)


def _schema_version(file: Path) -> int | None:
    try:
        found = json.loads(file.read_bytes())["schema_version"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None
