"""What rounding to float8 costs, and what scales win; no GPU is needed.

    python -m benchmarks.fp8.accuracy [--decoder MODEL.onnx --calibrate IDS.npz --score IDS.npz]

The networks of models/digits, calibrated on 100 images and scored on 400 others: SQNR of the logits in
dB and top-1. A decoder: its perplexity with `fp8.tolerance` 0 (each activation divided by the best power
of two), as it is by default, and so large that casts are all there is; products in float8, everything
else in float32. Data: `input_ids` int [n, length].
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.weights import perplexity, windows
from models.digits.data import load as load_digits
from qgraph import flow, onnx_io
from qgraph.context import Context
from qgraph.pipeline import Pipeline
from qgraph.runtime.reference import open_reference
from qgraph.target import target

DIGITS = Path(__file__).resolve().parents[2] / "models" / "digits"
ALL = {"fp8": {"costs": False, "min_elements": 1}, "calibrate": {"observer": "minmax"}}
TOLERANCES = (0.0, 0.1, 1e9)


def rounded(
    model: Path, hardware: str, precision: str, data: list, output: Path, **fp8: float
) -> str:
    """Write the model as it is before kernels are; return how inputs of products are scaled."""
    options = ALL | {"fp8": ALL["fp8"] | fp8}
    graph = onnx_io.load(model)
    context = Context(target=target(hardware), data=data)
    passes = [
        *flow.exact_passes(options),
        *flow.quantizing_passes(precision, options, context.target),
    ]
    if fp8:
        passes = [each for each in passes if each.name != "half"]
    stages = Pipeline(passes).run(graph, context)
    onnx_io.save(graph, output)
    ways = Counter(
        layer["input"].partition(" by ")[0] + (" in a Mul" if "Mul" in layer["input"] else "")
        for stage in stages
        if stage.name == "fp8"
        for layer in stage.report.layers
    )
    return ", ".join(f"{count} {way}" for way, count in ways.most_common())


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="what float8 costs")
    parser.add_argument("--decoder", type=Path)
    parser.add_argument("--calibrate")
    parser.add_argument("--score")
    parser.add_argument("--windows", type=int, default=8, help="calibration windows")
    parser.add_argument("--limit", type=int, default=12, help="windows scored")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model.onnx"
        _digits(output)
        if given.decoder:
            _decoder(given, output)
    return 0


def _digits(output: Path) -> None:
    digits = load_digits()
    feeds = {"image": digits.test_x}
    print("| model | target | precision | SQNR dB | top-1 |\n|---|---|---|---|---|")
    for name in ("digits_vit", "digits_cnn"):
        model = DIGITS / f"{name}.onnx"
        with open_reference(model) as session:
            (want,) = session.run(feeds).values()
        for hardware, precision in (("tensorrt", "int8"), ("tensorrt", "fp8"), ("cuda", "fp8")):
            if (name, hardware) == ("digits_cnn", "cuda"):
                continue  # its only product by a constant makes the output
            data = [{"image": image[None]} for image in digits.train_x[:100]]
            rounded(model, hardware, precision, data, output)
            with open_reference(output) as session:
                (got,) = session.run(feeds).values()
            noise = np.square(got - want, dtype=np.float64).sum()
            sqnr = 10 * np.log10(np.square(want, dtype=np.float64).sum() / noise)
            top1 = (got.argmax(axis=1) == digits.test_y).mean()
            print(f"| {name} | {hardware} | {precision} | {sqnr:.1f} | {top1:.4f} |", flush=True)


def _decoder(given: argparse.Namespace, output: Path) -> None:
    data = [{"input_ids": row[None]} for row in windows(given.calibrate)[: given.windows]]
    score = windows(given.score)[: given.limit]
    print("\n| fp8.tolerance | inputs | perplexity |\n|---|---|---|")
    print(f"| fp32 | | {perplexity(given.decoder, score, 0):.2f} |", flush=True)
    for tolerance in TOLERANCES:
        ways = rounded(given.decoder, "cuda", "fp8", data, output, tolerance=tolerance)
        print(f"| {tolerance:g} | {ways} | {perplexity(output, score, 0):.2f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
