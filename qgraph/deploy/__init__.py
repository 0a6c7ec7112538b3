"""Hands an artifact over to what serves it: a server's model repository, or a plain folder.

A new destination is one file with a class like those in `DESTINATIONS`, and one line there.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from qgraph.deploy.payload import Payload, load_payload
from qgraph.deploy.remarks import Remarks
from qgraph.errors import UsageError
from qgraph.registry import by_name, pick

DESTINATIONS: tuple[str, ...] = (
    "qgraph.deploy.triton:Triton",
    "qgraph.deploy.model_server:ModelServer",
    "qgraph.deploy.folder:Folder",
)


@dataclass(frozen=True)
class Deployment:
    """What was written.

    Attributes:
        to: Name of the destination.
        folder: What holds the model and its README.md.
        files: Every file that was written, in that folder or beside it.
        facts: What people want to know of it, by a word or two.
        remarks: What the user should know.
    """

    to: str
    folder: Path
    files: list[Path]
    facts: dict[str, str]
    remarks: Remarks


class Destination(Protocol):
    """Something that serves models, and how it wants them.

    Attributes:
        name: As `--to` spells it.
        options: A frozen dataclass; its fields are the options that it takes, None by default.
    """

    name: ClassVar[str]
    options: ClassVar[type]

    def write(self, payload: Payload, folder: Path, options: Any) -> Deployment:
        """Write the deployment, all of it or nothing.

        Raises:
            UsageError: The options do not fit each other or the model.
            ModelError: The server can't take the model.
            ArtifactError: The place is in use by something else, or can't be written.
        """
        ...


def destinations() -> dict[str, type[Destination]]:
    """Every destination by name."""
    return by_name(DESTINATIONS)


def deploy(
    artifact: str | os.PathLike[str],
    to: str,
    folder: str | os.PathLike[str],
    *,
    force: bool = False,
    data: str | None = None,
    **options: Any,
) -> Deployment:
    """Write an artifact as something else serves it.

    Args:
        artifact: A folder that `compile` wrote.
        to: `triton`, `openvino-model-server` or `folder`.
        folder: Where to write.
        force: Deploy what missed its accuracy floor or was changed since it was compiled.
        data: Samples, of which the first serves for warm-up and as an example; without it, inputs
            are made up and tried.
        options: The destination's; see its options class. None is the same as left out.

    Returns:
        What was written.

    Raises:
        UsageError: Unknown destination or option, or options that do not fit.
        ArtifactError: The artifact is damaged, failed or changed; the place is in use.
        ModelError: The server can't take the model.
        DataError, EngineError: The data does not fit, or the model fails on it.
    """
    chosen = pick("destination", to, destinations())
    given = {key: value for key, value in options.items() if value is not None}
    _check_options(chosen, given)
    payload = load_payload(Path(artifact), force=force, data=data)
    _check_place(Path(folder), payload)
    return chosen().write(payload, Path(folder), chosen.options(**given))


def _check_options(chosen: type[Destination], given: Mapping[str, Any]) -> None:
    known = [each.name for each in fields(chosen.options)]
    for key in given:
        if key not in known:
            flags = ", ".join(flag(name) for name in known) or "no options"
            raise UsageError(f"{flag(key)} is not for {chosen.name}", fix=f"it takes {flags}")


def flag(option: str) -> str:
    """An option as the command line spells it."""
    return f"--{option.replace('_', '-')}"


def _check_place(folder: Path, payload: Payload) -> None:
    """Refuse to write into the artifact itself.

    Raises:
        UsageError: The folder is the artifact, or lies in it.
    """
    place, own = folder.resolve(), payload.artifact.path.resolve()
    if place == own or own in place.parents:
        raise UsageError(
            "is the artifact itself, or lies in it", where=str(folder), fix="name another folder"
        )
