"""`engine.plan` and its record: written beside the model, checked before the library sees it.

The library's own checks come too late: what it can't load ends in an error without a name, or in a
crash.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict

from qgraph.errors import EngineError
from qgraph.runtime.builder import Built
from qgraph.runtime.tensorrt.device import Device, device
from qgraph.runtime.tensorrt.library import Library
from qgraph.runtime.tensorrt.options import Profile, TensorRtOptions

PLAN = "engine.plan"
RECORD = "engine.json"
_MOST_BYTES = 1 << 20
_AGAIN = "compile the model again on this machine"


class PlanRecord(BaseModel):
    """What is known about an engine.

    Attributes:
        model: Name of the model file that it was built of.
        model_sha256: That file's hash, without external data.
        library: Name of the library that built it.
        version: Its version.
        capabilities: Compute capabilities that it runs on; with `hardware` `any-ampere` all from
            8.0 on.
        profiles: By input name, least, usual and greatest shape; empty where shapes are fixed.
        options: Options that are not the defaults.
        sha256: Hash of the engine's file.
        bytes: Its size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    model_sha256: str
    library: str
    version: str
    capabilities: tuple[str, ...]
    profiles: tuple[dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]], ...] = ()
    options: dict[str, Any] = {}
    sha256: str
    bytes: int


def record(
    library: Library,
    model: Path,
    engine: bytes,
    profiles: Sequence[Profile],
    options: TensorRtOptions,
    chosen: Sequence[str],
) -> dict[str, Any]:
    """Return the record of a new engine, JSON-able."""
    here = device()
    if library.capabilities:
        runs_on = tuple(chosen) or tuple(c for c in library.capabilities if _number(c) >= 80)
    else:
        runs_on = (here.capability,) if here else ()
    made = PlanRecord(
        model=model.name,
        model_sha256=_sha256(model),
        library=library.title,
        version=library.version,
        capabilities=runs_on,
        profiles=tuple(dict(each) for each in profiles),
        options=options.model_dump(mode="json", exclude_defaults=True),
        sha256=hashlib.sha256(engine).hexdigest(),
        bytes=len(engine),
    )
    return made.model_dump(mode="json")


def write_plan(built: Built, model: Path) -> list[Path]:
    """Write an engine and its record beside the model, each whole or not at all."""
    found = PlanRecord.model_validate(built.record)
    plan, about = model.with_name(PLAN), model.with_name(RECORD)
    about.unlink(missing_ok=True)  # no record of another engine meanwhile
    _write(plan, built.engine)
    _write(about, found.model_dump_json(indent=1).encode())
    return [plan, about]


def plan_of(model: Path) -> PlanRecord | None:
    """Return the record of the engine beside a model, None where there is none of this model.

    Raises:
        EngineError: The record is damaged.
    """
    file = model.with_name(RECORD)
    if not file.is_file():
        return None
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError("too large")
        found = PlanRecord.model_validate_json(file.read_bytes())
    except (OSError, ValueError, pydantic.ValidationError) as error:
        raise EngineError("is damaged", where=str(file), fix=_AGAIN) from error
    if found.model != model.name or found.model_sha256 != _sha256(model):
        return None
    return found


def read_plan(model: Path, found: PlanRecord, library: Library, here: Device | None) -> bytes:
    """Return the engine beside a model, after making sure that it can be loaded here.

    Raises:
        EngineError: Another library or version built it, there is no GPU, it is for others, or the
            file is damaged.
    """
    file = model.with_name(PLAN)
    reason = misfit(found, library, here)
    if reason is not None:
        raise EngineError(reason, where=str(file), fix=_AGAIN)
    try:
        if file.stat().st_size != found.bytes:
            raise EngineError("has another size than its record says", where=str(file), fix=_AGAIN)
        engine = file.read_bytes()
    except OSError as error:
        raise EngineError(
            f"can't be read ({error.strerror})", where=str(file), fix=_AGAIN
        ) from error
    if hashlib.sha256(engine).hexdigest() != found.sha256:
        raise EngineError("has changed since it was built", where=str(file), fix=_AGAIN)
    return engine


def misfit(found: PlanRecord, library: Library, here: Device | None) -> str | None:
    """Say why an engine can't be loaded here, or None."""
    built = f"was built by {found.library} {found.version}"
    if found.library != library.title:
        return f"{built}, installed is {library}"
    if found.version != library.version and not _loads_later(found, library):
        return f"{built}, installed is {library.version}"
    if here is None:
        return "needs an NVIDIA GPU, and none is visible"
    if here.capability not in found.capabilities and not _any_ampere(found, here):
        listed = ", ".join(found.capabilities) or "an unknown one"
        return f"runs on compute capability {listed}, not on {here.capability} ({here.name})"
    return None


def _loads_later(found: PlanRecord, library: Library) -> bool:
    """Whether a version-compatible engine is no newer than the library, within a major version."""
    if not found.options.get("version_compatible"):
        return False
    old, new = _version(found.version), _version(library.version)
    return old[:1] == new[:1] and old <= new


def _any_ampere(found: PlanRecord, here: Device) -> bool:
    return found.options.get("hardware") == "any-ampere" and _number(here.capability) >= 80


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in text.split("."))


def _number(capability: str) -> int:
    major, _, minor = capability.partition(".")
    return 10 * int(major) + int(minor or 0) if major.isdigit() and minor.isdigit() else 0


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes(content)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
