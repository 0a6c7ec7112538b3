"""A plain folder: the model, a script that runs it, and inputs to try it on."""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from qgraph.artifact import staged
from qgraph.deploy import Deployment
from qgraph.deploy.folder_readme import readme
from qgraph.deploy.payload import Payload
from qgraph.deploy.record import (
    RECORD,
    DeployRecord,
    read_record,
    version_of,
    write_record,
)
from qgraph.deploy.remarks import Remarks
from qgraph.deploy.runner import packages, runner
from qgraph.errors import ArtifactError, ModelError
from qgraph.file_hashes import changes, file_record
from qgraph.text import few

EXAMPLE = "example.npz"
SCRIPT = "run.py"
# What numpy's files can hold.
_TYPES = frozenset(
    ["bool", "string", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64))]
    + [f"float{bits}" for bits in (16, 32, 64)]
)


@dataclass(frozen=True)
class FolderOptions:
    """What `deploy` takes for a folder: nothing."""


class Folder:
    """DIR/model.onnx, DIR/run.py, DIR/example.npz and DIR/README.md."""

    name: ClassVar[str] = "folder"
    options: ClassVar[type] = FolderOptions

    def write(self, payload: Payload, folder: Path, options: FolderOptions) -> Deployment:
        """Write the folder, or replace one that was written before.

        Raises:
            ArtifactError: The folder holds something else, or can't be written.
            ModelError: An input or output is of a type that numpy does not have.
        """
        check_free(folder)
        _check_types(payload)
        remarks = Remarks()
        if payload.plan is not None:
            remarks.notes.append("the TensorRT engine stays behind: the script runs model.onnx")
        with staged(folder) as scratch:
            for path in (*payload.model, *payload.tokenizer):
                shutil.copyfile(path, scratch / path.relative_to(payload.artifact.path))
            (scratch / SCRIPT).write_text(runner(payload), encoding="utf-8")
            if payload.example is not None:
                (scratch / EXAMPLE).write_bytes(_archive(payload))
            (scratch / "README.md").write_text(readme(payload), encoding="utf-8")
            own = {path.relative_to(scratch).as_posix(): path for path in scratch.iterdir()}
            records = {name: file_record(path) for name, path in sorted(own.items())}
            version = version_of(payload, records)
            write_record(DeployRecord(to=self.name, versions={1: version}), scratch)
        return Deployment(
            to=self.name,
            folder=folder,
            files=[folder / name for name in (*records, RECORD)],
            facts={"needs": ", ".join(packages(payload)), "try": f"python {folder / SCRIPT}"},
            remarks=payload.remarks + remarks,
        )


def check_free(folder: Path) -> None:
    """Refuse a folder that holds anything but a former deployment, untouched.

    Raises:
        ArtifactError: It does.
    """
    fix = "name another folder"
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ArtifactError("is no folder", where=str(folder), fix=fix)
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / RECORD).is_file():
        raise ArtifactError(
            "is in use and `qgraph deploy` did not write it", where=str(folder), fix=fix
        )
    record = read_record(folder)
    if record.to != Folder.name:
        raise ArtifactError(f"was deployed to {record.to}", where=str(folder), fix=fix)
    found = changes(folder, record.files(), but=RECORD)
    own = [*found.added, *found.changed]
    if own:
        raise ArtifactError(
            f"holds files of yours, which would be lost: {few(own)}", where=str(folder), fix=fix
        )


def _check_types(payload: Payload) -> None:
    for info in (*payload.inputs, *payload.outputs):
        if info.dtype not in _TYPES:
            raise ModelError(
                f"is {info.dtype}, which numpy's files can't hold",
                where=f"input or output {info.name!r}",
                fix="give the model an input or output of another type",
            )


def _archive(payload: Payload) -> bytes:
    """The example as .npz; strings as numpy's own, since objects would be pickled."""
    example = payload.example or {}
    arrays = {name: x.astype(str) if x.dtype == object else x for name, x in example.items()}
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()
