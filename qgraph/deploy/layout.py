"""Versions of a model side by side in one folder, as model servers want them: NAME/1, NAME/2 ..."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from qgraph.artifact import MANIFEST, staged
from qgraph.deploy.payload import Payload
from qgraph.deploy.record import (
    RECORD,
    DeployRecord,
    Version,
    read_record,
    version_of,
    write_record,
)
from qgraph.errors import ArtifactError, UsageError
from qgraph.file_hashes import file_record
from qgraph.manifest import FileRecord

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_Options = TypeVar("_Options")


def model_name(payload: Payload, given: str | None) -> str:
    """The model's name on the server: the one given, else that of the artifact's folder.

    Raises:
        UsageError: It can't be a folder and part of a URL.
    """
    if given is None:
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", payload.artifact.path.resolve().name)
        given = plain.lstrip(".-")[:128] or "model"
    if not _NAME.fullmatch(given):
        raise UsageError(
            f"--name {given!r} can't be a model's name",
            fix="use letters, digits, '_', '-' and '.', at most 128, none of the latter two first",
        )
    return given


def check_repository(folder: Path, *, foreign: tuple[str, ...]) -> None:
    """Refuse a place that can't hold models.

    Args:
        folder: Where models are to lie, each in a folder of its own.
        foreign: Files that show that it is a model's own folder.

    Raises:
        ArtifactError: It is a file, an artifact, or one model's folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ArtifactError("is no folder", where=str(folder), fix="name a folder")
    for file in (MANIFEST, RECORD, *foreign):
        if (folder / file).exists():
            raise ArtifactError(
                f"holds one model ({file}), not a repository of models",
                where=str(folder),
                fix="name the folder above, or another one",
            )


def existing(place: Path, to: str) -> DeployRecord | None:
    """What was deployed at `place` before; None where nothing is.

    Raises:
        ArtifactError: Something else is there.
    """
    if not place.exists() and not place.is_symlink():
        return None
    if place.is_symlink() or not (place / RECORD).is_file():
        raise ArtifactError(
            "is there already and `qgraph deploy` did not write it",
            where=str(place),
            fix="choose another --name",
        )
    record = read_record(place)
    if record.to != to:
        raise ArtifactError(
            f"was deployed to {record.to}, not {to}", where=str(place), fix="choose another --name"
        )
    return record


def inherit(options: _Options, record: DeployRecord | None, but: tuple[str, ...]) -> _Options:
    """Fill in options that were not given with those of the versions before.

    Args:
        options: A dataclass whose fields are None where nothing was given.
        record: What was deployed before.
        but: Options that each version has for itself.
    """
    if record is None:
        return options
    names = {each.name for each in fields(options)} - set(but)  # type: ignore[arg-type]
    unset = {name for name in names if getattr(options, name) is None}
    kept = {key: value for key, value in record.options.items() if key in unset}
    return replace(options, **kept)  # type: ignore[type-var]


def check_settings(place: Path, record: DeployRecord | None, settings: Mapping[str, Any]) -> None:
    """Refuse a version that needs another configuration than the ones that are there.

    Raises:
        ArtifactError: It does; the line says in what.
    """
    if record is None or record.settings == settings:
        return
    lines = [
        f"{key}: {_short(record.settings.get(key))} there, {_short(settings.get(key))} now"
        for key in dict.fromkeys((*record.settings, *settings))
        if record.settings.get(key) != settings.get(key)
    ]
    raise ArtifactError(
        f"its versions share one configuration, and this one needs another ({'; '.join(lines)})",
        where=str(place),
        fix="deploy it under another --name",
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def choose_version(
    place: Path, record: DeployRecord | None, given: int | None, payload: Payload
) -> int:
    """The number of the version that is added: the one given, else the next.

    Raises:
        ArtifactError: It is there already.
    """
    taken = {int(each.name) for each in _version_folders(place)}
    following = max(taken | set(record.versions if record else ()), default=0) + 1
    if given is None and record is not None:
        for number, there in record.versions.items():
            if there.manifest_sha256 == payload.sha256 and number in taken:
                raise ArtifactError(
                    f"this artifact is there already, as version {number}",
                    where=str(place),
                    fix=f"pass --version {following} to deploy it once more",
                )
    version = following if given is None else given
    if version in taken:
        raise ArtifactError(
            f"version {version} is there already",
            where=str(place),
            fix=f"leave --version out for the next one, {following}",
        )
    return version


def version_policy(wanted: str | None) -> dict[str, Any]:
    """Which versions are served, as Triton's and OpenVINO Model Server's messages both spell it.

    Raises:
        UsageError: It can't be understood.
    """
    kind, _, rest = (wanted or "latest").partition(":")
    numbers = [int(part) for part in rest.split(",") if part.isascii() and part.isdigit()]
    written = ",".join(map(str, numbers))
    if kind == "all" and not rest:
        return {"all": {}}
    if kind == "latest" and (not rest or (len(numbers) == 1 and written == rest and numbers[0])):
        return {"latest": {"num_versions": numbers[0] if numbers else 1}}
    if kind == "specific" and numbers and written == rest and all(numbers):
        return {"specific": {"versions": numbers}}
    raise UsageError(
        f"--version-policy {wanted!r} is none", fix="give latest, latest:2, all or specific:1,3"
    )


def _version_folders(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return [each for each in place.iterdir() if re.fullmatch(r"[1-9][0-9]*", each.name)]


def create(
    place: Path,
    version: int,
    files: Mapping[str, Path],
    shared: Mapping[str, bytes],
    record: DeployRecord,
    payload: Payload,
) -> None:
    """Write a new model with one version, all of it or nothing.

    Args:
        place: Its folder; nothing is there yet.
        version: Number of the version.
        files: Name in the version's folder -> file to copy.
        shared: Name in the model's folder -> content.
        record: What is known beside the files.
        payload: The artifact.

    Raises:
        ArtifactError: It can't be written.
    """
    with staged(place) as scratch:
        for name, content in shared.items():
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).write_bytes(content)
            record.shared[name] = file_record(scratch / name)
        (scratch / str(version)).mkdir()
        record.versions[version] = _copied(scratch / str(version), version, files, payload)
        write_record(record, scratch)


def add(
    place: Path, version: int, files: Mapping[str, Path], record: DeployRecord, payload: Payload
) -> None:
    """Put a version beside the others, and touch none of them.

    Raises:
        ArtifactError: It can't be written.
    """
    # The scratch folder has a name that servers take for no version.
    with staged(place / str(version)) as scratch:
        record.versions[version] = _copied(scratch, version, files, payload)
    write_record(record, place)


def _copied(folder: Path, version: int, files: Mapping[str, Path], payload: Payload) -> Version:
    records: dict[str, FileRecord] = {}
    for name, source in files.items():
        shutil.copyfile(source, folder / name)
        records[f"{version}/{name}"] = file_record(folder / name)
    return version_of(payload, records)


def written(place: Path, record: DeployRecord, version: int, *, new: bool) -> list[Path]:
    """Every file that `create` or `add` wrote."""
    names = list(record.versions[version].files)
    names += [RECORD, *(record.shared if new else ())]
    return [place / name for name in sorted(names)]
