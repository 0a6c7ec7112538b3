"""The README.md of a model in OpenVINO Model Server's repository."""

import shlex
from pathlib import Path

from qgraph.deploy import readme as parts
from qgraph.deploy.payload import Payload

_CONTENT = """\
# {name}

A model for OpenVINO Model Server, as ONNX. {untried}

## Serve

    docker run --rm -u $(id -u) -p 9000:9000 -p 8000:8000 \\
        -v {folder}:{mount}:ro \\
        openvino/model_server:latest \\
        --config_path {mount}/config.json --port 9000 --rest_port 8000

    curl -sf localhost:8000/v2/models/{name}/ready && echo ready
    curl -s localhost:8000/v2/models/{name}

`config.json` names models below {mount}: mount the repository there. The server reads it again when
it changes. INFERENCE_PRECISION_HINT in it says in what the float parts are computed: without it
OpenVINO takes bfloat16 on CPUs that have it.

## Call

The server speaks the same protocol as Triton: `pip install 'tritonclient[http]'`, then
`tritonclient.http.InferenceServerClient("localhost:8000").infer({quoted}, inputs)`.

## Inputs and outputs

{tensors}
{tokenizer}
## Where it comes from

{provenance}

`qgraph verify` on this folder says whether a file has changed since. A further version:
`qgraph deploy ARTIFACT --to openvino-model-server DIR --name {name}`.
"""


def readme(payload: Payload, name: str, folder: Path, mount: str) -> str:
    """Write the page.

    Args:
        payload: The model.
        name: Its name on the server.
        folder: The repository.
        mount: Where the server sees it.
    """
    return _CONTENT.format(
        name=name,
        quoted=repr(name),
        untried=parts.UNTRIED,
        folder=shlex.quote(str(folder.absolute())),
        mount=mount,
        tensors=parts.tensors(payload),
        tokenizer=parts.tokenizer_note(payload),
        provenance=parts.provenance(payload),
    )
