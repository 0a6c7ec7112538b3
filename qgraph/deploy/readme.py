"""Parts that the READMEs of all deployments share."""

from collections.abc import Iterable, Sequence
from typing import Any

from qgraph.deploy.payload import Payload
from qgraph.interface import Codes, Interface, Pixels
from qgraph.runtime.backend import TensorInfo, format_shape
from qgraph.text import printable

UNTRIED = "`qgraph deploy` wrote these files; it did not start the server."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; nothing in a cell can end it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|").replace("<", "&lt;")


def code(text: str) -> str:
    """A name from a model as Markdown code, whatever is in it."""
    return f"`{printable(text).replace('`', chr(39))}`"


def tensors(payload: Payload) -> str:
    """Inputs and outputs, and what integers in them mean."""
    meanings = _meanings(payload.manifest.io)
    rows = [
        (kind, code(info.name), info.dtype, code(format_shape(info.shape)), meanings.get(key, ""))
        for kind, infos in (("input", payload.inputs), ("output", payload.outputs))
        for info in infos
        for key in [(kind, info.name)]
    ]
    shown = table(("", "name", "type", "shape", "holds"), rows)
    return shown + "\n" + preprocessing(payload)


def _meanings(io: dict[str, Any] | None) -> dict[tuple[str, str], str]:
    """What the manifest's `io` says of each input and output, in words."""
    interface = Interface.from_json(io)
    taken = {("input", name): _meaning(each) for name, each in interface.inputs.items()}
    given = {("output", name): _meaning(each) for name, each in interface.outputs.items()}
    return taken | given


def _meaning(entry: Pixels | Codes) -> str:
    if isinstance(entry, Codes):
        numbers = entry.encoding
        return f"codes: value = (code - {int(numbers.zero_point)}) * {float(numbers.scale):.9g}"
    less = f" minus {entry.shift}" if entry.shift else ""
    return (
        f"raw pixels 0 to 255{less}, {entry.layout}, {entry.images.channels}, of the model's size"
    )


def preprocessing(payload: Payload) -> str:
    """How images become the model's float input, where its recipe says so."""
    from qgraph.data.image_options import ImageOptions

    recorded = payload.manifest.recipe.get("images")
    if not recorded or (payload.manifest.io or {}).get("inputs"):
        return ""
    images = ImageOptions.model_validate(recorded)
    return (
        f"\nImages: {images.channels} pixels 0 to 255, resized to the model's size, then "
        f"(pixel * {images.scale:.9g} - mean) / std with mean {list(images.mean)}, std "
        f"{list(images.std)}, as {images.layout}.\n"
    )


def provenance(payload: Payload) -> str:
    """Where the model comes from, and how it was judged."""
    manifest = payload.manifest
    facts = [
        ("artifact", payload.artifact.path.resolve().name),
        ("its manifest's sha256", payload.sha256),
        ("target, precision", f"{manifest.target}, {manifest.precision}"),
        ("made for", payload.engine or "no engine that ran here"),
        ("with", ", ".join(f"{k} {v}" for k, v in sorted(manifest.packages.items()))),
        ("operators", f"ONNX opset {payload.opset}"),
    ]
    if manifest.accuracy is not None:
        outcome = "passed" if manifest.accuracy.passed else "FAILED"
        facts.append(("compared with the original", f"{outcome}, {manifest.accuracy.data} data"))
    return table(("", ""), facts)


def example_shapes(payload: Payload) -> dict[str, TensorInfo]:
    """Sizes of inputs with dynamic axes, of feeds that the model was seen to take."""
    example = payload.example or {}
    return {
        info.name: TensorInfo(info.name, info.dtype, example[info.name].shape)
        for info in payload.inputs
        if info.name in example
    }


def tokenizer_note(payload: Payload) -> str:
    """Say where a decoder's tokenizer is."""
    if not payload.tokenizer:
        return ""
    names = ", ".join(code(path.name) for path in payload.tokenizer)
    return f"\nText becomes tokens in the client: {names} lie in the artifact.\n"
