"""What a deployment says about itself, as `qgraph.json` beside the model's versions."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from qgraph import __version__
from qgraph.deploy.payload import Payload
from qgraph.errors import ArtifactError
from qgraph.manifest import FileRecord

RECORD = "qgraph.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Version(_Part):
    """One artifact that was deployed."""

    artifact: str
    manifest_sha256: str
    target: str
    precision: str
    files: dict[str, FileRecord]


class DeployRecord(_Part):
    """What was deployed, and how it is served."""

    schema_version: int = 1
    qgraph_version: str = __version__
    to: str
    options: dict[str, Any] = Field(default_factory=dict)
    """As they were given; those that were not are taken from here for further versions."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What the server's configuration was made from: the same for every version."""
    shared: dict[str, FileRecord] = Field(default_factory=dict)
    """Files that belong to no version."""
    versions: dict[int, Version]

    def files(self) -> dict[str, FileRecord]:
        """Every file, by its path inside."""
        own = [version.files for version in self.versions.values()]
        return {name: record for part in (self.shared, *own) for name, record in part.items()}


def version_of(payload: Payload, files: dict[str, FileRecord]) -> Version:
    """Describe an artifact's files as they were deployed."""
    return Version(
        artifact=payload.artifact.path.resolve().name,
        manifest_sha256=payload.sha256,
        target=payload.manifest.target,
        precision=payload.manifest.precision,
        files=files,
    )


def read_record(folder: Path) -> DeployRecord:
    """Read what a deployment says about itself.

    Raises:
        ArtifactError: It is damaged, or not there.
    """
    try:
        return DeployRecord.model_validate_json((folder / RECORD).read_bytes())
    except (pydantic.ValidationError, OSError) as error:
        raise ArtifactError(
            f"{RECORD} is missing, damaged, or of a newer qgraph",
            where=str(folder),
            fix="deploy to another folder",
        ) from error


def write_record(record: DeployRecord, folder: Path) -> None:
    """Write `qgraph.json`, or replace it at once."""
    handle, scratch = tempfile.mkstemp(prefix=f".{RECORD}.", dir=folder)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(record.model_dump_json(indent=2) + "\n")
    Path(scratch).chmod(0o644)
    Path(scratch).replace(folder / RECORD)
