"""fp8 against fp16 in onnxruntime's CUDA provider, on one GPU with compute capability 8.9 or newer.

    python -m benchmarks.fp8 [FOLDER] [--provider cuda|cpu] [--quick] [--parts NAMES]

Writes to FOLDER (default: $OUT, else the current one) `costs.json`, the table `qgraph/costs/h100-fp8.json`,
`report.json` with everything, and `tables.md`, which is printed too. All is written after every step, so
that what was measured survives a machine that is taken away; what fails is noted in the report and the
rest goes on. `--provider cpu --quick` tries every step on tiny sizes without a GPU, with plain operators
in the kernel's place.

Kernels: casts and products against float64. Products: one x W, fp16 against fp8 behind a cast. Encoder:
24 layers of BERT-large's shape, fp16 in every way against fp8 as qgraph compiles it, with profiles.
Graph: whether a CUDA graph can be recorded of fp8 products, last, since that may break the process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cuda_weights.__main__ import Run, about
from benchmarks.cuda_weights.tables import cost_json
from benchmarks.cuda_weights.timing import Device
from benchmarks.fp8 import encoder, kernels, products, profiling, tables
from qgraph.costs import pays
from qgraph.costs.table import CostTable, Row
from qgraph.runtime import backend

PARTS = ("kernels", "encoder", "products", "graph")
SHAPES = (
    *((1024, 1024), (1024, 3072), (1024, 4096), (4096, 1024), (2048, 8192)),
    *((4096, 4096), (4096, 14336), (14336, 4096)),
)
ROWS = (256, 1024, 2048, 4096, 8192, 16384, 32768)
# Bytes that an input and a result may take together.
MOST_BYTES = 2 << 30
# Batch and length: 8,192 tokens and more.
TOKENS = ((64, 128), (16, 512), (32, 512), (64, 512))
PROFILED = ("fp16", "fp8 all")
# Seconds after which products are left out, so that the whole stays below four minutes.
BUDGET = 200.0


@dataclass
class Fp8Run(Run):
    """Everything measured so far.

    Attributes:
        started: When, for the budget.
    """

    started: float = field(default_factory=time.perf_counter)

    @property
    def late(self) -> bool:
        """Whether there is no time for more."""
        return time.perf_counter() - self.started > BUDGET

    @property
    def table(self) -> CostTable | None:
        """The cost table so far."""
        if not self.rows:
            return None
        return CostTable(
            device=self.about["device"],
            engine=f"onnxruntime {self.about['onnxruntime']}, {self.device.name}",
            date=self.about["date"],
            command="python -m benchmarks.fp8",
            notes="fp8: Cast and GemmFloat8, kernel by kernel; fp16: MatMul, the faster of that and a "
            "CUDA graph. Weights in turn from memory; times of one product in microseconds.",
            products=tuple(self.rows),
        )

    def save(self) -> None:
        """Write all files anew."""
        table = self.table
        if table is not None:
            (self.folder / "costs.json").write_text(cost_json(table))
        (self.folder / "report.json").write_text(json.dumps(self.about | self.report, indent=1))
        (self.folder / "tables.md").write_text(tables.markdown(self.about, self.report))


def main() -> int:
    """Measure the parts named, in the order in which they matter."""
    parser = argparse.ArgumentParser(description="fp8 against fp16")
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
    run = Fp8Run(device, given.folder, given.quick, about(device))
    print(json.dumps(run.about), flush=True)
    parts = {"kernels": _kernels, "encoder": _encoder, "products": _products, "graph": _graph}
    for part in given.parts.split(","):
        start = time.perf_counter()
        with run.going_on(part):
            parts[part](run)
        seconds = time.perf_counter() - start
        run.report.setdefault("seconds", {})[part] = round(seconds, 1)
        print(f"{part}: {seconds:.0f} s", flush=True)
        run.save()
    print((given.folder / "tables.md").read_text())
    return 1 if "failures" in run.report else 0


def _kernels(run: Fp8Run) -> None:
    found = run.report.setdefault("kernels", {})
    with run.going_on("casts"):
        found["casts rounded otherwise"] = wrong = kernels.cast_mismatches(run.device)
        if wrong:
            run.fail(f"{wrong} float16 numbers are cast otherwise than qgraph takes them to be")
    for dtype, shape in kernels.cases(run.quick):
        label = f"{' x '.join(map(str, shape))}, {dtype}"
        with run.going_on(label):
            found[label] = error = kernels.product_error(run.device, dtype, shape)
            if not error <= kernels.TOLERANCE[dtype]:
                run.fail(f"GemmFloat8 {label}: error {error:.2g}")


def _products(run: Fp8Run) -> None:
    for depth, width in ((64, 96), (96, 64)) if run.quick else SHAPES:
        if run.late:
            run.report.setdefault("left out", []).append(f"{depth} x {width}")
            continue
        with run.going_on(f"{depth} x {width}"):
            _shape(run, depth, width)
        print(f"{depth} x {width} done", flush=True)
        run.save()


def _shape(run: Fp8Run, depth: int, width: int) -> None:
    most = MOST_BYTES // (2 * (depth + width))
    rows = (4, 16) if run.quick else tuple(m for m in ROWS if m <= most)
    times: dict[str, list[float]] = {}
    for way in products.WAYS:
        with run.going_on(f"{way}, {depth} x {width}"):
            times[way] = products.times(run.device, way, depth, width, rows, graphs=False)
    if run.device.graphs:
        recorded = products.times(run.device, "fp16", depth, width, rows, graphs=True)
        times["fp16"] = [min(pair) for pair in zip(times["fp16"], recorded, strict=True)]
    found = {"depth": depth, "width": width, "rows": rows, "us": times}
    run.report.setdefault("products", []).append(found)
    for kernel, way in (("fp16", "fp16"), ("fp8", "cast")):
        run.rows.append(
            Row(kernel=kernel, block=0, depth=depth, width=width, rows=rows, us=tuple(times[way]))
        )


def _encoder(run: Fp8Run) -> None:
    config = encoder.TINY if run.quick else encoder.LARGE
    tokens = ((2, 8), (1, 16)) if run.quick else TOKENS
    forms = ("separate", "packed") if run.device.name == "cuda" else ("plain",)
    # On ORT's CPU provider the fused kernel has no fp16.
    with tempfile.TemporaryDirectory() as scratch:
        for form in forms:
            with run.going_on(f"encoder, {form}"):
                _form(run, config, form, tokens, Path(scratch))
    _summary(run)


def _form(
    run: Fp8Run,
    config: encoder.Config,
    form: str,
    tokens: tuple[tuple[int, int], ...],
    scratch: Path,
) -> None:
    proto = encoder.build(config, form)
    small, long = (2, 8) if run.quick else (4, 128)
    data = [encoder.inputs(config, small, long, seed) for seed in (1, 2)]
    feeds = encoder.inputs(config, small, long)
    exact = encoder.run_once(proto.SerializeToString(), run.device, feeds)
    variants = {
        "fp16": ("fp16", ()),
        **{f"fp8 {n}": ("fp8", out) for n, out in encoder.CHOICES.items()},
    }
    for name, (precision, leave) in variants.items():
        path = scratch / f"{form}.{name.replace(' ', '.')}.onnx"
        with run.going_on(f"{form}, {name}"):
            seconds, count = encoder.write(proto, precision, path, run.device, data, leave=leave)
            print(f"{form}, {name}: {count} in fp8, built in {seconds:.0f} s", flush=True)
            got = encoder.run_once(path, run.device, feeds)
            error = float(np.linalg.norm(got - exact) / np.linalg.norm(exact))
            found: dict[str, Any] = {"form": form, "variant": name, "fp8": count, "error": error}
            run.report.setdefault("encoder", []).append(found)
            _time(run, found, path, config, tokens)


def _time(
    run: Fp8Run,
    found: dict[str, Any],
    path: Path,
    config: encoder.Config,
    tokens: tuple[tuple[int, int], ...],
) -> None:
    """Time a variant; fp16 in a CUDA graph too, of which fp8 can't be a part."""
    label = f"{found['form']}, {found['variant']}"
    for batch, length in tokens:
        feeds = encoder.inputs(config, batch, length)
        for graphs in (False, True) if run.device.graphs and not found["fp8"] else (False,):
            with run.going_on(f"{label}, {batch} x {length}, graphs {graphs}"):
                us = encoder.run_time(path, run.device, feeds, graphs=graphs)
                key = "graph_us" if graphs else "plain_us"
                found.setdefault(key, {})[f"{batch} x {length}"] = us
        run.save()
    if found["variant"] not in PROFILED:
        return
    with run.going_on(f"{label}, profile"):
        batch, length = tokens[0]
        shape = (batch, length, config.width)
        found["profile"] = profiling.by_operator(path, run.device, shape)
    run.save()


def _summary(run: Fp8Run) -> None:
    """Say by size how much faster the best fp8 is than the best fp16."""
    best: dict[str, dict[str, float]] = {}
    for each in run.report.get("encoder", []):
        kind = each["variant"][:4].strip()
        for times in (each.get("plain_us", {}), each.get("graph_us", {})):
            for tokens, us in times.items():
                here = best.setdefault(tokens, {})
                here[kind] = min(here.get(kind, us), us)
    run.report["best"] = {
        tokens: {**kinds, "ratio": round(kinds["fp16"] / kinds["fp8"], 3)}
        for tokens, kinds in best.items()
        if {"fp16", "fp8"} <= set(kinds)
    }


def _graph(run: Fp8Run) -> None:
    """Try to record fp8 products in a process of its own, which the attempt may break."""
    if run.table is not None:
        _decisions(run, run.table)
    if not run.device.graphs:
        run.report["graph"] = "not tried: no GPU"
        return
    code = (
        "from benchmarks.cuda_weights.timing import Device\n"
        "from benchmarks.fp8.products import times\n"
        "print(times(Device('cuda'), 'cast', 1024, 1024, (1024,), graphs=True))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    state = "recorded" if done.returncode == 0 else "refused"
    run.report["graph"] = f"{state}: {' '.join(lines[-1:])[:400]}"


def _decisions(run: Fp8Run, table: CostTable) -> None:
    """Say which products of the encoder the measured times would put in fp8."""
    config = encoder.TINY if run.quick else encoder.LARGE
    found: dict[str, dict[str, float]] = {}
    for batch, length in TOKENS:
        for form in ("separate", "packed"):
            for name, (depth, width) in encoder.products(config, form).items():
                verdict = pays(table, depth, width, batch * length, "fp8", 0)
                if verdict is not None:
                    found.setdefault(f"{name} {depth} x {width}", {})[f"{batch * length} rows"] = (
                        round(verdict.ratio, 2)
                    )
    run.report["decisions"] = found


if __name__ == "__main__":
    sys.exit(main())
