"""int4 and int8 weights against fp16 in onnxruntime's CUDA provider, on one GPU.

    python -m benchmarks.cuda_weights [FOLDER] [--provider cuda|cpu] [--quick] [--parts NAMES]

Writes to FOLDER (default: $OUT, else the current one) `costs.json`, a table for `qgraph/costs/`,
`report.json` with everything, and `tables.md`, which is printed too. All is written after every
part, so that what was measured survives a machine that is taken away; what fails is noted in the
report and the rest goes on. `--provider cpu --quick` tries every step on tiny sizes without a GPU.

Products: one x W, many times in one session with weights in turn, so that none stays in the cache,
under a CUDA graph. Steps: one token of a decoder, 128 tokens of cache, with a CUDA graph and without.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnxruntime as ort

from benchmarks.cuda_weights import decode, products, tables
from benchmarks.cuda_weights.timing import Device, cutlass
from qgraph.costs.table import CostTable, Row
from qgraph.runtime import backend

PARTS = ("errors", "products", "steps", "cutlass-products", "cutlass-steps")
SHAPES = (
    *((576, 576), (576, 192), (576, 1536), (1536, 576), (576, 49152), (2048, 2048), (2048, 8192)),
    *((4096, 4096), (4096, 11008), (11008, 4096), (4096, 14336), (14336, 4096)),
)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
BATCHES, PAST = (1, 4, 16, 64), 128
# Blocks and bits that are checked, with and without CUTLASS.
CHECKED = [products.Kernel(f"int{n}", n, block) for n in (4, 8) for block in (16, 32, 64, 128)]


@dataclass
class Run:
    """Everything measured so far.

    Attributes:
        device: Where.
        folder: Where it is written to.
        quick: Tiny sizes only.
        about: Device, versions and date.
        report: Results by part.
        rows: The cost table's.
    """

    device: Device
    folder: Path
    quick: bool
    about: dict[str, str]
    report: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def going_on(self, what: str) -> Iterator[None]:
        """Note what fails inside, and go on: the machine is lent for minutes."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common base
            first = next(iter(str(error).splitlines()), "")
            self.fail(f"{what}: {type(error).__name__}: {first}")
            self.report.setdefault("tracebacks", []).append(traceback.format_exc())

    def fail(self, line: str) -> None:
        """Note a failure."""
        print(f"FAILED {line}", flush=True)
        self.report.setdefault("failures", []).append(line)

    def save(self) -> None:
        """Write all files anew."""
        if self.rows:
            table = CostTable(
                device=self.about["device"],
                engine=f"onnxruntime {self.about['onnxruntime']}, {self.device.name}, CUDA graph",
                date=self.about["date"],
                command="python -m benchmarks.cuda_weights",
                notes="Weights in turn from memory; times of one product in microseconds.",
                products=tuple(self.rows),
            )
            (self.folder / "costs.json").write_text(tables.cost_json(table))
        (self.folder / "report.json").write_text(json.dumps(self.about | self.report, indent=1))
        (self.folder / "tables.md").write_text(tables.markdown(self.about, self.report, self.rows))


def main() -> int:
    """Measure the parts named, in the order in which they matter."""
    parser = argparse.ArgumentParser(description="int4 and int8 weights against fp16")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of the parts")
    given = parser.parse_args()
    unknown = sorted(set(given.parts.split(",")) - set(PARTS))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if given.provider == "cuda" and (reason := backend("onnxruntime-cuda").unavailable()):
        parser.error(reason)
    given.folder.mkdir(parents=True, exist_ok=True)
    device = Device(given.provider, seconds=0.002 if given.quick else 0.05)
    run = Run(device, given.folder, given.quick, about(device))
    print(json.dumps(run.about), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for part in given.parts.split(","):
            start = time.perf_counter()
            with run.going_on(part):
                _part(run, part, Path(scratch))
            seconds = time.perf_counter() - start
            run.report.setdefault("seconds", {})[part] = round(seconds, 1)
            print(f"{part}: {seconds:.0f} s", flush=True)
            run.save()
    print((given.folder / "tables.md").read_text())
    return 1 if "failures" in run.report else 0


def about(device: Device) -> dict[str, str]:
    """Return what ran, where and when."""
    name = "CPU"
    if device.name == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, check=True, capture_output=True, text=True)
            name = done.stdout.splitlines()[0].partition(",")[0].strip()
        except (OSError, subprocess.CalledProcessError, IndexError):
            name = "NVIDIA GPU"
    date = datetime.now(UTC).date().isoformat()
    return {"device": name, "onnxruntime": ort.__version__, "date": date}


def _part(run: Run, part: str, scratch: Path) -> None:
    if part == "errors":
        _errors(run)
    elif part.endswith("products"):
        kernels = products.CUTLASS_KERNELS if part.startswith("cutlass") else products.KERNELS
        _products(run, kernels)
    else:
        fast = part.startswith("cutlass")
        with cutlass(fast):
            _steps(run, scratch, ("int4-cutlass",) if fast else ("fp16", "int4"))


def _errors(run: Run) -> None:
    for kernel in (*CHECKED, *products.CUTLASS_KERNELS):
        label = f"{kernel.name}, block {kernel.block}"
        with run.going_on(label):
            worst = products.error(run.device, kernel)
            run.report.setdefault("errors", {})[label] = worst
            if not worst <= products.TOLERANCE:
                run.fail(f"{label}: error {worst:.2g}")


def _products(run: Run, kernels: Iterable[products.Kernel]) -> None:
    shapes = ((64, 96), (96, 64)) if run.quick else SHAPES
    rows = (1, 4) if run.quick else ROWS
    for depth, width in shapes:
        for kernel in kernels:
            label = f"{kernel.name}, block {kernel.block}, {depth} x {width}"
            with run.going_on(label):
                row, cycle = products.times(run.device, kernel, depth, width, rows)
                run.rows.append(row)
                run.report.setdefault("cycle_mb", {})[label] = round(cycle, 1)
        print(f"{depth} x {width} done", flush=True)
        run.save()


def _steps(run: Run, scratch: Path, variants: tuple[str, ...]) -> None:
    for name in decode.TINY if run.quick else decode.MODELS:
        for variant in variants:
            with run.going_on(f"{name}, {variant}"):
                path = _decoder(run, scratch, name, variant.partition("-")[0])
                for batch in BATCHES:
                    found = _step(run, path, name, variant, batch)
                    steps = run.report.setdefault("steps", {}).setdefault(name, {})
                    steps.setdefault(variant, []).append(found)
                    run.save()


def _decoder(run: Run, scratch: Path, name: str, precision: str) -> Path:
    """Return a decoder's file, compiled unless it was before."""
    path = scratch / f"{name}.{precision}.onnx"
    if not path.exists():
        config, shared = decode.TINY[name] if run.quick else decode.MODELS[name]
        small = {"min_elements": 1} if run.quick else {}
        seconds = decode.write(config, shared, precision, path, **small)
        print(f"{name}, {precision}: built in {seconds:.0f} s", flush=True)
    return path


def _step(run: Run, path: Path, name: str, variant: str, batch: int) -> dict[str, Any]:
    """Time a step; where no CUDA graph can be recorded, without."""
    config, _ = decode.TINY[name] if run.quick else decode.MODELS[name]
    past = 16 if run.quick else PAST
    found: dict[str, Any] = {"batch": batch}
    for graphs in (True, False) if run.device.graphs else (False,):
        if len(found) == 1:
            with run.going_on(f"{name}, {variant}, batch {batch}, graphs {graphs}"):
                found |= decode.step(run.device, path, config, batch, past, graphs=graphs)
    return found


if __name__ == "__main__":
    sys.exit(main())
