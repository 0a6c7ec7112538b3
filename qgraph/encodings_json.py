"""Encodings as a JSON file: written by `qgraph calibrate`, edited by people, read by `compile`."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qgraph import __version__
from qgraph.encoding import INTEGERS, Encoding
from qgraph.errors import ArtifactError, DataError, UsageError
from qgraph.facts import Plan
from qgraph.strict_json import number, read_json, whole

FORMAT = "qgraph-encodings"
SCHEMA_VERSION = 1
Range = tuple[float, float]


@dataclass(frozen=True)
class Given:
    """What a file says about one tensor.

    Attributes:
        range: (low, high), where the file has one.
        scale: None where the range alone is given, and scale and zero point follow from it.
        zero_point: On the grid of `dtype`, or of codes from 0 where that is None.
        dtype: Name of the integer type; None where the file knows only its width.
        bits: Width of the codes; 0 where it is not said.
        symmetric: Whether the zero point is the middle of the grid; None where it is not said.
    """

    range: Range | None = None
    scale: float | None = None
    zero_point: int = 0
    dtype: str | None = None
    bits: int = 0
    symmetric: bool | None = None


@dataclass(frozen=True)
class Encodings:
    """Encodings from a file.

    Attributes:
        where: The file, for messages.
        format: Which of the known formats it has.
        tensors: By tensor name, in the file's order.
        skipped: (tensor or group of them, why it is not used).
        graph: Hash of the graph that they were made on; empty where the file has none.
        target: The target that they were made for; empty where the file does not say.
        repairs: Options of the passes that changed the graph before, by pass; None if not said.
    """

    where: str
    format: str
    tensors: Mapping[str, Given]
    skipped: Sequence[tuple[str, str]] = ()
    graph: str = ""
    target: str = ""
    repairs: Mapping[str, Any] | None = field(default=None)

    @property
    def own(self) -> bool:
        """Whether qgraph wrote it, with the names and groups of its own graph."""
        return self.format == FORMAT


def read_encodings(source: Any) -> Encodings:
    """Read encodings from a file or from what its JSON holds.

    Formats: qgraph's own, the `encodings.json` of an artifact, AIMET's encodings (versions 0.4 to
    1.0), and onnxruntime's calibration tables as JSON. Weights are never taken from a file:
    `quantize_weights` finds theirs from the weights as they stand after fusion.

    Args:
        source: A path, a dict, or `Encodings`, which are returned as they are.

    Raises:
        DataError: The file can't be read, or says something impossible of a tensor.
        UsageError: `source` is something else.
    """
    from qgraph.encodings_foreign import read_aimet, read_onnxruntime

    if isinstance(source, Encodings):
        return source
    if isinstance(source, Mapping):
        where, document = "encodings", dict(source)
    elif isinstance(source, str | os.PathLike):
        where, document = str(source), read_json(source)
    else:
        raise UsageError(
            f"encodings can't be a {type(source).__name__}", fix="give a path or a dict"
        )
    if not isinstance(document, dict):
        raise DataError(f"holds a {type(document).__name__}, not an object", where=where)
    if document.get("format") == FORMAT:
        return _read_own(document, where)
    if "activation_encodings" in document or "param_encodings" in document:
        return read_aimet(document, where)
    if "activations" in document and "weights" in document:
        return _read_artifact(document, where)
    return read_onnxruntime(document, where)


def document_of(
    plan: Plan,
    encodings: Mapping[str, Encoding],
    ranges: Mapping[str, Range],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the JSON document for planned and encoded activations.

    Args:
        plan: Has groups and reasons; tensors stand in its order, which is the graph's.
        encodings: By tensor name, one scale each.
        ranges: By tensor name.
        facts: What else stands at the head: model, graph, target, options, data.
    """
    members: dict[str, list[str]] = {}
    for name, placement in plan.activations.items():
        members.setdefault(placement.group, []).append(name)
    tensors = []
    for name, placement in plan.activations.items():
        encoding = encodings[name]
        entry: dict[str, Any] = {
            "name": name,
            "dtype": encoding.dtype,
            "symmetric": placement.spec.symmetric,
            "scale": shortest(encoding.scale),
            "zero_point": int(encoding.zero_point),
            "range": list(ranges[name]),
        }
        if len(members[placement.group]) > 1:
            entry["group"] = members[placement.group]
        tensors.append(entry | {"reason": placement.reason})
    head = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "qgraph_version": __version__}
    return {**head, **facts, "tensors": tensors}


def shortest(scale: Any) -> float:
    """Return the float64 of fewest digits that is exactly this float32 again."""
    exact = np.float32(scale)
    short = float(str(exact))
    return short if np.float32(short) == exact else float(exact)


def dump(document: Mapping[str, Any]) -> str:
    """Return the document as text with one line a tensor, so that edits and diffs are readable."""
    head = [
        f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}"
        for key, value in document.items()
        if key != "tensors"
    ]
    rows = [f"    {json.dumps(entry, allow_nan=False)}" for entry in document["tensors"]]
    listed = "[\n" + ",\n".join(rows) + "\n  ]" if rows else "[]"
    return "{\n" + ",\n".join([*head, f'  "tensors": {listed}']) + "\n}\n"


def check_file(path: Path) -> None:
    """Refuse to replace anything but an encodings file.

    Raises:
        ArtifactError: The path is a folder or another file, or its folder is missing.
    """
    if path.is_dir():
        raise ArtifactError("is a folder", where=str(path), fix="name a file with -o")
    if not path.parent.is_dir():
        raise ArtifactError("there is no such folder", where=str(path.parent))
    if not path.exists() and not path.is_symlink():
        return
    try:
        known = path.stat().st_size == 0 or read_json(path).get("format") == FORMAT
    except (DataError, AttributeError, OSError):
        known = False
    if not known or not path.is_file():
        raise ArtifactError(
            "exists and is no encodings file of qgraph's",
            where=str(path),
            fix="choose another file with -o, or remove it",
        )


def write_encodings(document: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the document; the file is complete or as it was before.

    Raises:
        ArtifactError: The path holds something else, or can't be written.
    """
    place = Path(path)
    check_file(place)
    scratch = ""
    try:
        handle, scratch = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(dump(document))
        # mkstemp makes files private; this one is as readable as any other.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(scratch, 0o666 & ~umask)
        os.replace(scratch, place)
    except OSError as error:
        if scratch:
            Path(scratch).unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise ArtifactError(f"can't be written ({reason})", where=str(place)) from error


# -- reading -----------------------------------------------------------------------------------


def _read_own(document: dict[str, Any], where: str) -> Encodings:
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        fix = "upgrade qgraph" if newer else "calibrate again"
        raise DataError(f"has the schema version {version!r}", where=where, fix=fix)
    listed = document.get("tensors")
    if not isinstance(listed, list):
        raise DataError("has no list of tensors", where=where)
    tensors: dict[str, Given] = {}
    for index, entry in enumerate(listed):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise DataError(f"tensor {index} has no name", where=where)
        if name in tensors:
            raise DataError("stands there twice", where=tensor_at(where, name), fix="remove one")
        tensors[name] = _own_tensor(entry, tensor_at(where, name))
    repairs = document.get("repairs")
    return Encodings(
        where,
        FORMAT,
        tensors,
        graph=str(document.get("graph") or ""),
        target=str(document.get("target") or ""),
        repairs=repairs if isinstance(repairs, dict) else None,
    )


def _own_tensor(entry: Mapping[str, Any], where: str) -> Given:
    span = span_of(entry["range"], where) if entry.get("range") is not None else None
    dtype = entry.get("dtype")
    if dtype is not None and (not isinstance(dtype, str) or dtype not in INTEGERS):
        known = ", ".join(INTEGERS)
        raise DataError(f"dtype is {dtype!r}", where=where, fix=f"give one of {known}")
    if entry.get("scale") is None:
        if span is None:
            raise DataError("has neither scale nor range", where=where)
        return Given(span, dtype=dtype)
    scale = scale_of(entry["scale"], where)
    zero = whole(one_of(entry.get("zero_point", 0), "zero_point", where), "zero_point", where)
    if dtype is None:
        raise DataError("has a scale but no dtype", where=where, fix="add it, such as uint8")
    return Given(span, scale, zero, dtype)


def _read_artifact(document: dict[str, Any], where: str) -> Encodings:
    listed = document["activations"]
    if not isinstance(listed, dict) or not all(isinstance(e, dict) for e in listed.values()):
        raise DataError("is damaged: activations is no table", where=where)
    tensors = {name: _own_tensor(entry, tensor_at(where, name)) for name, entry in listed.items()}
    return Encodings(where, "artifact", tensors)


def tensor_at(where: str, name: str) -> str:
    """Name a file and a tensor in it, for messages."""
    return f"{where}, tensor {name!r}"


def one_of(value: Any, what: str, where: str) -> Any:
    """Return a number, or the only element of a list: activations have one scale a tensor.

    Raises:
        DataError: The list has none, or several.
    """
    if not isinstance(value, list):
        return value
    if len(value) != 1:
        raise DataError(
            f"{what} has {len(value)} values, activations take one", where=where, fix="give one"
        )
    return value[0]


def scale_of(value: Any, where: str) -> float:
    """Return a scale that float32 can hold, above its subnormal numbers.

    Raises:
        DataError: It is not positive and finite.
    """
    found = number(one_of(value, "scale", where), "scale", where)
    limits = np.finfo(np.float32)
    if not float(limits.tiny) <= found <= float(limits.max):
        raise DataError(
            f"scale is {found!r}, not a positive number that float32 can hold", where=where
        )
    return found


def span_of(value: Any, where: str) -> Range:
    """Return (low, high).

    Raises:
        DataError: It is no pair of finite numbers in that order.
    """
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise DataError("range is no pair [low, high]", where=where)
    low, high = number(value[0], "low", where), number(value[1], "high", where)
    if low > high:
        raise DataError(f"range is [{low!r}, {high!r}], with low above high", where=where)
    return low, high
