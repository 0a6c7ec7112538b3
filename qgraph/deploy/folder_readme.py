"""The README.md of a folder deployment."""

from qgraph.deploy import readme as parts
from qgraph.deploy.engines import outside
from qgraph.deploy.payload import Payload
from qgraph.deploy.runner import packages

_CONTENT = """\
# {name}

`model.onnx` runs in onnxruntime, `run.py` shows how. Neither needs qgraph.

    pip install {packages}
    python run.py{example}
    python run.py inputs.npz outputs.npz

Keys of an `.npz` are the names of inputs and outputs.{what}{engine}

## Inputs and outputs

{tensors}
{tokenizer}
## Where it comes from

{provenance}

`qgraph verify` on this folder says whether a file has changed since.
"""


def readme(payload: Payload) -> str:
    """Write the page."""
    example = payload.example is not None
    names = ", ".join(parts.code(path.name) for path in payload.tokenizer)
    return _CONTENT.format(
        name=payload.artifact.path.resolve().name,
        packages=" ".join(packages(payload)),
        example="" if example else " inputs.npz",
        what=_what(payload),
        engine=_engine(payload),
        tensors=parts.tensors(payload),
        tokenizer=f"\nText becomes tokens by {names}.\n" if names else "",
        provenance=parts.provenance(payload),
    )


def _what(payload: Payload) -> str:
    if payload.example is None:
        return ""
    held = "a sample" if payload.sampled else "random inputs of sizes that the model takes"
    return f" `example.npz` holds {held}."


def _engine(payload: Payload) -> str:
    engine = outside(payload.engine)
    if engine.plugin:
        return (
            f"\n\nThe artifact was fastest in OpenVINO ({payload.options.float_precision} for what is "
            "float), which the script uses where its plugin is installed."
        )
    if engine.gpu:
        return f"\n\nThe artifact was made for {engine.providers[0]}; the script takes the providers that are there."
    return ""
