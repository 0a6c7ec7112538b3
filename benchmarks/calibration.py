"""Calibration against onnxruntime's quantizer: time, and peak memory of a process of its own.

    python -m benchmarks.calibration [MODEL.onnx DATA.npz] [--samples 128] [--only entropy,auto]
                                     [--score EVALUATION.npz] [--all]

DATA.npz holds one array for each input, samples along the first axis. EVALUATION.npz holds the same
of other samples, and may hold `labels`: then each quantized file is run on them, and the first
output's SQNR against the float model (all samples' signal over all samples' noise) and top-1 are
printed. `--all` adds rows with other options. Without arguments: the convolutional network of
models/digits. `plain` is float32 inference over the same data, one sample at a time, timed in each
row's own process before and after, the best of six. `total` goes from the model file to the
quantized file. Targets on mobilenet_v2: at most 8 times as long as plain inference, and below
900 MB; docs/calibration.md has the figures.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
# An observer, and behind a space its option.
QGRAPH = ("mean-minmax", "percentile", "entropy", "mse", "auto")
MORE = (
    "minmax",
    "moving-average",
    "percentile 99.9",
    "percentile 99.999",
    "percentile 99.9999",
    "mse 2.4",
)
OPTION = {"percentile": "percentile", "mse": "norm"}
ORT = ("MinMax", "Percentile", "Entropy")


def main() -> int:
    """Run each row in a child process and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument(
        "--only", default="", help="rows to run beside `plain`, as the table names them"
    )
    parser.add_argument("--score", type=Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(run(args.row, args.model, args.data, args.samples, args.score)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model, data = args.model, args.data
        if model is None or data is None:
            model, data = ROOT / "models/digits/digits_cnn.onnx", Path(folder) / "digits.npz"
            _write_digits(data)
        rows = [*QGRAPH, *(MORE if args.all else ()), *(f"onnxruntime {name}" for name in ORT)]
        if args.only:
            rows = [row for row in rows if row in args.only.split(",")]
        found = {row: _child(row, model, data, args.samples, args.score) for row in rows}
    table = Table(
        "calibration", "plain s", "calibrate s", "x plain", "total s", "peak MB", "score", "report"
    )
    for name, row in found.items():
        ours = row["calibrate"] > 0
        table.add_row(
            name,
            f"{row['plain']:.2f}" if ours else "",
            f"{row['calibrate']:.2f}" if ours else "",
            f"{row['calibrate'] / row['plain']:.1f}" if ours else "",
            f"{row['total']:.2f}",
            f"{row['peak']:.0f}",
            row["score"],
            row["report"],
        )
    Console(width=150).print(f"{model}, {args.samples} samples")
    Console(width=150).print(table)
    return 0


def run(row: str, model: Path, data: Path, samples: int, evaluation: Path | None) -> dict[str, Any]:
    """Measure one row in this process: seconds and MB, and the score."""
    with np.load(data) as arrays:
        inputs = {name: arrays[name][:samples] for name in arrays.files}
    feeds = [
        {name: array[i : i + 1] for name, array in inputs.items()}
        for i in range(len(next(iter(inputs.values()))))
    ]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "q.onnx"
        plain, calibrate, report = 0.0, 0.0, ""
        if row.startswith("onnxruntime "):
            total = _onnxruntime(row.split()[1], model, feeds, output)
        else:
            plain = _plain(model, feeds)
            calibrate, total, report = _qgraph(row, model, feeds, output)
            plain = min(plain, _plain(model, feeds))
        # Peak memory is read before the files are scored.
        peak = _peak()
        score = _score(model, output, evaluation) if evaluation else ""
    return {
        "plain": plain,
        "calibrate": calibrate,
        "total": total,
        "peak": peak,
        "score": score,
        "report": report,
    }


def _peak() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def _score(model: Path, quantized: Path, evaluation: Path) -> str:
    """SQNR of the first output, dB, and top-1 of both files where there are labels."""
    from qgraph.runtime import backend

    results = []
    with np.load(evaluation) as arrays:
        for path in (model, quantized):
            with backend("onnxruntime-cpu").open(path) as session:
                names = [info.name for info in session.inputs]
                count = len(arrays[names[0]])
                inputs = {name: arrays[name] for name in names}
                feeds = ({n: a[i : i + 1] for n, a in inputs.items()} for i in range(count))
                outputs = [next(iter(session.run(sample).values())) for sample in feeds]
                results.append(np.concatenate(outputs).astype(np.float64))
        labels = arrays.get("labels")
    want, got = results
    text = f"{10 * np.log10((want**2).sum() / ((got - want) ** 2).sum()):.2f} dB"
    if labels is None:
        return text
    right, before = (float((found.argmax(1) == labels).mean()) for found in (got, want))
    return f"{text}, {right:.4f} ({before:.4f})"


def _plain(model: Path, feeds: list[dict[str, Any]]) -> float:
    """Best of three: other load on the machine only ever adds."""
    from qgraph.runtime import backend

    times = []
    with backend("onnxruntime-cpu").open(model) as session:
        for _ in range(3):
            start = time.perf_counter()
            for sample in feeds:
                session.run(sample)
            times.append(time.perf_counter() - start)
    return min(times)


def _qgraph(
    observer: str, model: Path, feeds: list[dict[str, Any]], output: Path
) -> tuple[float, float, str]:
    """Every step from file to file that onnxruntime's quantizer takes too."""
    import qgraph
    from qgraph import flow
    from qgraph.context import Context
    from qgraph.pipeline import Pipeline
    from qgraph.target import target

    start = time.perf_counter()
    graph = qgraph.load(model)
    Pipeline(flow.exact_passes({})).run(graph)
    names = ["plan", "calibrate", "quantize_weights", "insert_qdq"]
    name, _, option = observer.partition(" ")
    # Without the cache: a second run of the same data would take no time.
    options: dict[str, Any] = {"observer": name, "cache": False}
    if option:
        options[OPTION[name]] = float(option)
    passes = flow.build(names, {"calibrate": options})
    context = Context(target=target("cpu"), data=feeds)
    stages = Pipeline(passes, given=graph.facts.present()).run(graph, context)
    qgraph.save(graph, output)
    total = time.perf_counter() - start
    stage = next(stage for stage in stages if stage.name == "calibrate")
    line = stage.report.details[0]
    return stage.seconds, total, line if " samples in " in line else ""


def _onnxruntime(method: str, model: Path, feeds: list[dict[str, Any]], output: Path) -> float:
    """As its documentation advises: pre-processed (without that, mobilenet_v2 loses 6 dB)."""
    import logging

    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Hands the samples out one by one."""

        def __init__(self) -> None:
            self.samples: Iterator[dict[str, Any]] = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            """Give the next sample, None at the end."""
            return next(self.samples, None)

    logging.disable(logging.WARNING)
    start = time.perf_counter()
    prepared = output.with_name("prepared.onnx")
    quant_pre_process(str(model), str(prepared))
    quantization.quantize_static(
        str(prepared),
        str(output),
        Reader(),
        calibrate_method=quantization.CalibrationMethod[method],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
    )
    return time.perf_counter() - start


def _child(
    row: str, model: Path, data: Path, samples: int, evaluation: Path | None
) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.calibration", str(model), str(data)]
    command += ["--samples", str(samples), "--row", row]
    command += ["--score", str(evaluation)] if evaluation else []
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{row}: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _write_digits(path: Path) -> None:
    from models.digits.data import load

    np.savez(path, image=load().train_x)


if __name__ == "__main__":
    sys.exit(main())
