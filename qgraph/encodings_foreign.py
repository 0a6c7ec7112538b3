"""Encodings that other tools wrote: AIMET's, and onnxruntime's calibration tables."""

from collections.abc import Iterator, Mapping
from typing import Any

from qgraph.encodings_json import (
    Encodings,
    Given,
    one_of,
    scale_of,
    span_of,
    tensor_at,
)
from qgraph.errors import DataError
from qgraph.strict_json import number, whole

_FLAGS = {"true": True, "false": False}


def read_aimet(document: Mapping[str, Any], where: str) -> Encodings:
    """Read AIMET's encodings, versions 0.4 to 1.0.

    Codes count from 0, whatever the type they are stored in: x = (code + offset) * scale, so the
    zero point on that grid is -offset.

    Raises:
        DataError: Another version, or an impossible value.

    Source: AIMET documentation, "Encoding Format Specification"
        (https://quic.github.io/aimet-pages/releases/latest/techniques/encoding_spec.html),
        versions 0.6.1 and 1.0.0.
    """
    version = str(document.get("version", "0.4.0"))
    if version.split(".")[0] not in ("0", "1"):
        raise DataError(
            f"has AIMET's encoding version {version}",
            where=where,
            fix="export it with version 1.0.0 or 0.6.1",
        )
    tensors: dict[str, Given] = {}
    skipped: list[tuple[str, str]] = []
    for name, entries in _aimet_tensors(document.get("activation_encodings") or {}, where):
        place = tensor_at(where, name)
        if name in tensors or name in dict(skipped):
            raise DataError("stands there twice", where=place, fix="remove one")
        found = _aimet_tensor(entries, place)
        if isinstance(found, str):
            skipped.append((name, found))
        else:
            tensors[name] = found
    weights = document.get("param_encodings") or {}
    if weights:
        reason = "weights are encoded from the weights themselves, as they stand after fusion"
        skipped.append((f"{len(weights)} weights", reason))
    return Encodings(where, f"AIMET {version}", tensors, skipped)


def _aimet_tensors(listed: Any, where: str) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Give name and entries, one a channel, of either form: by name, or a list with names."""
    if isinstance(listed, dict):
        for name, entries in listed.items():
            rows = entries if isinstance(entries, list) else [entries]
            if not rows or not all(isinstance(row, dict) for row in rows):
                raise DataError("is no list of encodings", where=tensor_at(where, name))
            yield name, rows
        return
    if not isinstance(listed, list):
        raise DataError("activation_encodings is no table", where=where)
    for index, entry in enumerate(listed):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise DataError(f"activation encoding {index} has no name", where=where)
        yield name, [entry]


def _aimet_tensor(entries: list[Mapping[str, Any]], where: str) -> Given | str:
    """Return one tensor's encoding, or why there is none."""
    if len(entries) != 1:
        return f"it has {len(entries)} scales, activations take one"
    entry = entries[0]
    kind = str(entry.get("dtype", "int")).lower()
    bits = whole(entry.get("bitwidth", entry.get("bw", 8)), "bitwidth", where)
    if kind != "int":
        return f"it is {kind}{bits}, no integer"
    if not 2 <= bits <= 32:
        raise DataError(f"bitwidth is {bits}", where=where, fix="give 2 to 32")
    if isinstance(entry.get("scale"), list) and len(entry["scale"]) > 1:
        return f"it has {len(entry['scale'])} scales, activations take one"
    symmetric = entry.get("is_symmetric", entry.get("is_sym", False))
    flag = _FLAGS.get(str(symmetric).lower())
    if flag is None:
        raise DataError(f"is_symmetric is {symmetric!r}", where=where, fix="give true or false")
    low, high = (one_of(entry.get(key), key, where) for key in ("min", "max"))
    span = None if low is None or high is None else span_of([low, high], where)
    if entry.get("scale") is None:
        if span is None:
            raise DataError("has neither scale nor min and max", where=where)
        return Given(span, bits=bits)
    scale = scale_of(entry["scale"], where)
    zero = -whole(one_of(entry.get("offset", 0), "offset", where), "offset", where)
    if not 0 <= zero < 2**bits:
        raise DataError(f"offset {-zero} is outside of {bits} bits", where=where)
    return Given(span, scale, zero, bits=bits, symmetric=flag)


def read_onnxruntime(document: Mapping[str, Any], where: str) -> Encodings:
    """Read a calibration table: ranges by tensor name.

    Takes what `write_calibration_table` and `save_tensors_data` of onnxruntime.quantization
    write, and plain tables of [min, max].

    Raises:
        DataError: It is none, or a range is impossible.
    """
    table: Any = document
    if document.get("CLS") == "TensorsData":
        table = document.get("data")
    if not isinstance(table, Mapping) or not table:
        raise DataError("holds no encodings", where=where)
    tensors: dict[str, Given] = {}
    skipped: list[tuple[str, str]] = []
    for name, entry in table.items():
        place = tensor_at(where, name)
        if isinstance(entry, Mapping):
            if "lowest" not in entry or "highest" not in entry:
                if entry.get("CLS") != "TensorData":
                    raise _unknown(place)
                skipped.append((name, "the table has no least and greatest value for it"))
                continue
            entry = [_scalar(entry[key], key, place) for key in ("lowest", "highest")]
        elif not isinstance(entry, list | tuple) or len(entry) != 2:
            raise _unknown(place)
        tensors[name] = Given(span_of([_scalar(each, "range", place) for each in entry], place))
    return Encodings(where, "onnxruntime", tensors, skipped)


def _scalar(value: Any, what: str, where: str) -> float:
    """Return a number that may be wrapped as the JSON form of a numpy array."""
    if isinstance(value, Mapping):
        value = value.get("data")
    while isinstance(value, list):
        value = one_of(value, what, where)
    return number(value, what, where)


def _unknown(where: str) -> DataError:
    return DataError(
        "is no encoding in a known form",
        where=where,
        fix="give qgraph's, AIMET's or onnxruntime's JSON",
    )
