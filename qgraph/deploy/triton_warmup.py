"""Requests with which Triton warms a model up before it calls it ready.

Source: ModelWarmup in model_config.proto of github.com/triton-inference-server/common; a warm-up
request that fails keeps the model from being served, so only ones that were seen to run are written.
"""

import struct
from typing import TYPE_CHECKING, Any

from qgraph.deploy.payload import Payload
from qgraph.deploy.remarks import Remarks
from qgraph.errors import UsageError

if TYPE_CHECKING:
    from qgraph.data import Feeds
    from qgraph.runtime.tensors import Array

FOLDER = "warmup"
Requests = list[dict[str, Any]]


def warm_up(
    payload: Payload, wanted: str | None, fields: dict[str, Any], remarks: Remarks
) -> tuple[Requests, dict[str, bytes]]:
    """Work out the warm-up requests of a model.

    Args:
        payload: The model.
        wanted: `zeros`, `sample` or `none`; by default the data's sample, or zeros without data.
        fields: The configuration; see `qgraph.deploy.triton_config.settings`.
        remarks: Why there are none is added here.

    Returns:
        `model_warmup` messages, and the files that they name.

    Raises:
        UsageError: There is no such kind of warm-up, or no data for it.
    """
    kind = wanted or ("sample" if payload.sampled else "zeros")
    if kind not in ("zeros", "none", "sample"):
        raise UsageError(f"--warm-up {kind!r} is none", fix="give zeros, sample or none")
    if kind == "sample" and not payload.sampled:
        raise UsageError("--warm-up sample needs data", fix="pass --data D")
    if kind == "none":
        return [], {}
    if reason := _obstacle(payload, kind, fields):
        remarks.notes.append(f"no warm-up: {reason}")
        return [], {}
    example = payload.example or {}
    if kind == "zeros":
        return _requests(example, fields, {name: {"zero_data": True} for name in example}), {}
    files = {f"{FOLDER}/{index}": _raw(x) for index, x in enumerate(example.values())}
    sources = {name: {"input_data_file": str(index)} for index, name in enumerate(example)}
    return _requests(example, fields, sources), files


def _obstacle(payload: Payload, kind: str, fields: dict[str, Any]) -> str:
    """Why the example can't be a request; "" where it can."""
    example = payload.example
    if example is None:
        return "no inputs are known that the model takes"
    if kind == "zeros" and not payload.zeros:
        return "the model was not seen to take zeros; --data D gives a sample"
    if any(0 in x.shape for x in example.values()):
        return "Triton takes no empty inputs there"
    if fields["backend"] == "tensorrt" and not _fits_profile(payload):
        return "the engine's profile is for other shapes than the example's"
    if fields["max_batch_size"] and any(x.shape[:1] != (1,) for x in example.values()):
        return "the sample is no batch of one"
    return ""


def _fits_profile(payload: Payload) -> bool:
    """Whether the example lies within the engine's first profile, where that is known."""
    profiles = payload.plan_record.get("profiles")
    try:
        return not profiles or all(
            all(low <= size <= high for low, size, high in zip(least, x.shape, most, strict=True))
            for name, x in (payload.example or {}).items()
            for least, _, most in [profiles[0][name]]
        )
    except (KeyError, IndexError, TypeError, ValueError):
        return False


def _requests(
    sample: "Feeds", fields: dict[str, Any], sources: dict[str, dict[str, Any]]
) -> Requests:
    """One request, and one of each larger size that batches will have."""
    largest = fields["max_batch_size"]
    types = {each["name"]: each["data_type"] for each in fields["input"]}
    reshaped = {each["name"] for each in fields["input"] if "reshape" in each}
    inputs = []
    for name, source in sources.items():
        shape = list(sample[name].shape)[1 if largest else 0 :]
        dims = [1] if name in reshaped or not shape else shape
        value = {"data_type": types[name], "dims": dims} | source
        inputs.append({"key": name, "value": value})
    preferred = (fields["dynamic_batching"] or {}).get("preferred_batch_size", [])
    sizes = sorted({1, largest, *preferred} - {0})
    return [{"name": f"batch of {size}", "batch_size": size, "inputs": inputs} for size in sizes]


def _raw(x: "Array") -> bytes:
    """Bytes as Triton reads them: little-endian, strings behind their length."""
    if x.dtype == object:
        texts = [str(text).encode() for text in x.reshape(-1)]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return x.astype(x.dtype.newbyteorder("<")).tobytes()
