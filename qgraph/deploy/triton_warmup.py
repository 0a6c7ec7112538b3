"""Requests with which Triton warms a model up before it calls it ready.

Source: ModelWarmup in model_config.proto of github.com/triton-inference-server/common; a warm-up
request that fails keeps the model from being served, so only ones that were seen to run are written.
"""

import struct
from typing import TYPE_CHECKING, Any

from qgraph.deploy.payload import Payload
from qgraph.deploy.remarks import Remarks
from qgraph.errors import DataError

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
        wanted: `zeros` (or None), `none`, or data whose first sample is used.
        fields: The configuration; see `qgraph.deploy.triton_config.settings`.
        remarks: Why there are none is added here.

    Returns:
        `model_warmup` messages, and the files that they name.

    Raises:
        DataError: The data can't be read, does not fit, or its sample is no batch of one.
    """
    if wanted == "none":
        return [], {}
    if wanted not in (None, "zeros"):
        return _from_data(_first_sample(payload, str(wanted)), fields)
    example = payload.example
    if fields["backend"] == "tensorrt" and not _fits_profile(payload):
        remarks.notes.append("no warm-up: the engine's profile is for other shapes than were tried")
        return [], {}
    if example is None or not payload.zeros:
        remarks.notes.append(
            "no warm-up: the model was not seen to take zeros; --warm-up DATA gives a sample"
        )
        return [], {}
    if any(0 in x.shape for x in example.values()):
        remarks.notes.append("no warm-up: Triton takes no empty inputs there")
        return [], {}
    return _requests(example, fields, {name: {"zero_data": True} for name in example}), {}


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


def _from_data(sample: "Feeds", fields: dict[str, Any]) -> tuple[Requests, dict[str, bytes]]:
    if fields["max_batch_size"]:
        for name, x in sample.items():
            if not x.ndim or len(x) != 1:
                raise DataError(
                    f"a sample of {list(x.shape)} is no batch of one", where=f"input {name!r}"
                )
    files = {f"{FOLDER}/{index}": _raw(x) for index, x in enumerate(sample.values())}
    sources = {name: {"input_data_file": str(index)} for index, name in enumerate(sample)}
    return _requests(sample, fields, sources), files


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


def _first_sample(payload: Payload, source: str) -> "Feeds":
    from qgraph.data import open_data
    from qgraph.interface import raw_images
    from qgraph.kv_cache import cache_axes_of
    from qgraph.runnable import image_options, runnable

    run = runnable(payload.artifact.path)
    images = raw_images(run.io) or image_options(run, None)
    caches = cache_axes_of(run.model, payload.inputs)
    data = open_data(source, payload.inputs, images=images, caches=caches, samples=1)
    return dict(next(iter(data)))


def _raw(x: "Array") -> bytes:
    """Bytes as Triton reads them: little-endian, strings behind their length."""
    if x.dtype == object:
        texts = [str(text).encode() for text in x.reshape(-1)]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return x.astype(x.dtype.newbyteorder("<")).tobytes()
