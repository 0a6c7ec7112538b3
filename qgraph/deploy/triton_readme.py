"""The README.md of a model in Triton's model repository."""

import shlex
from pathlib import Path
from typing import Any

from qgraph.deploy import readme as parts
from qgraph.deploy.payload import Payload

# The release whose backends' sources the configuration was checked against.
RELEASE = "26.07"
_CONTENT = """\
# {name}

A model for Triton Inference Server, backend {backend}. {untried}

## Serve

    docker run --rm {gpus}-p 8000:8000 -p 8001:8001 -p 8002:8002 \\
        -v {folder}:/models:ro \\
        nvcr.io/nvidia/tritonserver:{release}-py3 \\
        tritonserver --model-repository=/models

    curl -sf localhost:8000/v2/models/{name}/ready && echo ready
    curl -s localhost:8000/v2/models/{name}/config

The configuration was written after the sources of release {release}; older ones may not know all of
it.{image}

## Measure

    docker run --rm --net=host nvcr.io/nvidia/tritonserver:{release}-py3-sdk \\
        perf_analyzer -m {name} -i grpc -u localhost:8001 {measure}

## Call

    pip install 'tritonclient[http]'

```python
import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient("localhost:8000")
feeds = {{
{feeds}
}}
inputs = []
for name, (kind, x) in feeds.items():
    inputs.append(triton.InferInput(name, list(x.shape), kind))
    inputs[-1].set_data_from_numpy(x)
result = client.infer({quoted}, inputs)
print(result.as_numpy({output}))
```

## Inputs and outputs

{tensors}
{batching}{tokenizer}
## Where it comes from

{provenance}

`qgraph verify` on this folder says whether a file has changed since. A further version:
`qgraph deploy ARTIFACT --to triton DIR --name {name}`.
"""


def readme(payload: Payload, name: str, folder: Path, fields: dict[str, Any]) -> str:
    """Write the page.

    Args:
        payload: The model.
        name: Its name on the server.
        folder: The repository.
        fields: The configuration; see `qgraph.deploy.triton_config.settings`.
    """
    gpu = fields["instance_group"][0]["kind"] == "KIND_GPU"
    return _CONTENT.format(
        name=name,
        quoted=repr(name),
        backend=fields["backend"],
        untried=parts.UNTRIED,
        gpus="--gpus all " if gpu else "",
        folder=shlex.quote(str(folder.absolute())),
        release=RELEASE,
        image=_image(payload, fields["backend"]),
        measure=" ".join(_measure(payload, fields)),
        feeds=_feeds(payload, fields),
        output=repr(payload.outputs[0].name),
        tensors=parts.tensors(payload),
        batching=_batching(fields),
        tokenizer=parts.tokenizer_note(payload),
        provenance=parts.provenance(payload),
    )


def _image(payload: Payload, backend: str) -> str:
    packages = payload.manifest.packages
    if backend == "tensorrt":
        version = payload.plan_record.get("version") or packages.get("tensorrt", "of its build")
        return (
            "\nThe engine loads only in the TensorRT that built it "
            f"(version {version}) and on GPUs of the same compute capability: take the image that has it."
        )
    if backend == "onnxruntime":
        version = packages.get("onnxruntime-gpu", packages.get("onnxruntime", "of no version"))
        return f"\nThe artifact was tried in onnxruntime {version}; the image has one of its own."
    return ""


def _measure(payload: Payload, fields: dict[str, Any]) -> list[str]:
    """Options of perf_analyzer: sizes where they are dynamic, and zeros where random ids fail."""
    batched = fields["max_batch_size"] > 0
    words = ["-b 1"] if batched else []
    shapes = parts.example_shapes(payload)
    for message in fields["input"]:
        info = shapes.get(message["name"])
        if -1 in message["dims"] and info is not None:
            dims = ",".join(map(str, info.shape[int(batched) :]))
            words.append(f"--shape {shlex.quote(f'{info.name}:{dims}')}")
    if any("FP" not in message["data_type"] for message in fields["input"]):
        words.append("--input-data zero")
    return [*words, "--concurrency-range 1:8:1"]


def _feeds(payload: Payload, fields: dict[str, Any]) -> str:
    types = {each["name"]: each["data_type"].removeprefix("TYPE_") for each in fields["input"]}
    lines = []
    for info in payload.inputs:
        example = parts.example_shapes(payload).get(info.name, info)
        shape = tuple(dim if isinstance(dim, int) else 1 for dim in example.shape) or (1,)
        kind = types[info.name].replace("STRING", "BYTES")
        made = f'np.zeros({shape}, "{info.dtype}")'
        if kind == "BYTES":
            made = f'np.full({shape}, b"", object)'
        if kind == "BF16":
            made = f"np.zeros({shape}, np.float32)"
        lines.append(f"    {info.name!r}: ({kind!r}, {made}),")
    return "\n".join(lines)


def _batching(fields: dict[str, Any]) -> str:
    if not fields["max_batch_size"]:
        return "The first axis is the client's: the server puts no requests together.\n"
    together = (
        "The server puts requests together"
        if fields["dynamic_batching"] is not None
        else "It takes"
    )
    return f"The first axis is the batch. {together}: up to {fields['max_batch_size']}.\n"
