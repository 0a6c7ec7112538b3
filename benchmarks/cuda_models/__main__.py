"""Whole models for target `cuda` against plain onnxruntime, on one GPU.

    python -m benchmarks.cuda_models [FOLDER] [--provider cuda|cpu] [--quick] [--models NAMES]
        [--batches 1,8,32,128] [--no-int8]

ResNet-50, MobileNetV2 and a step of a decoder of 135 million weights, all with random weights: {fp32,
fp16} x {NCHW, NHWC} x {kernel by kernel, CUDA graph} in plain onnxruntime, and the artifact of `qgraph
compile --target cuda`. Inputs and outputs stay on the GPU. Every type and layout of a model runs in a
process of its own; the answers of all are compared with onnxruntime's CPU provider in fp32. The decoder has
no operators that know layouts, so it has one.

Writes `report.json` and `tables.md` to FOLDER (default: $OUT, else the current one) after every process, so
that what was measured survives a machine that is taken away. `--provider cpu --quick` tries every step on
small sizes without a GPU. Exit status 1: something failed; what was missed stands in `tables.md`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.cuda_models import tables
from benchmarks.cuda_models.workloads import WORKLOADS, feeds, write
from benchmarks.cuda_weights.__main__ import about
from benchmarks.cuda_weights.timing import Device
from qgraph.runtime import backend

# Rows whose answers are compared.
COMPARED = 8
TIMEOUT_S = 500


def main() -> int:
    """Measure the models named."""
    given, names = arguments()
    given.folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {**about(Device(given.provider)), "models": {}, "seconds": {}}
    print(json.dumps(report), flush=True)
    for name in names:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            _model(report, given, name, Path(scratch))
        report["seconds"][name] = round(time.perf_counter() - start, 1)
        print(f"{name}: {report['seconds'][name]} s", flush=True)
        _save(report, given.folder)
    print((given.folder / "tables.md").read_text())
    return 1 if "failures" in report else 0


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; return it and the models that it names."""
    parser = argparse.ArgumentParser(description="whole models in target cuda")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, batches 1 and 2")
    parser.add_argument("--models", default=",".join(WORKLOADS), help="some of the models")
    parser.add_argument("--batches", help="default: 1,8,32,128")
    parser.add_argument("--no-int8", action="store_true", help="leave the request of int8 out")
    given = parser.parse_args()
    names = given.models.split(",")
    if unknown := sorted(set(names) - set(WORKLOADS)):
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    if given.provider == "cuda" and (reason := backend("onnxruntime-cuda").unavailable()):
        parser.error(reason)
    given.batches = given.batches or ("1,2" if given.quick else "1,8,32,128")
    return given, names


def _model(report: dict[str, Any], given: argparse.Namespace, name: str, folder: Path) -> None:
    found: dict[str, Any] = report["models"].setdefault(WORKLOADS[name].name, {"plain": {}})
    write(name, folder, quick=given.quick)
    _warm_up_model(folder / "warm.onnx")
    batches = [int(each) for each in given.batches.split(",")]
    rows = feeds(name, min(COMPARED, max(batches)), quick=given.quick)
    with backend("onnxruntime-cpu").open(folder / "fp32.onnx") as session:
        answer = WORKLOADS[name].answer
        np.save(folder / "answer.npy", session.run(rows, [answer])[answer])
    job = {
        "model": name,
        "folder": str(folder),
        "provider": given.provider,
        "quick": given.quick,
        "seconds": 0.002 if given.quick else 0.3,
        "batches": batches,
        "int8": not given.no_int8,
    }
    for dtype in ("fp16", "fp32"):
        for layout in ("NCHW", "NHWC") if WORKLOADS[name].layouts else ("NCHW",):
            way = f"{dtype}, {layout}"
            child = job | {"dtype": dtype, "nhwc": layout == "NHWC"}
            found["plain"][way] = _child(report, "plain", f"{name}, {way}", child)
            _save(report, given.folder)
    _ours(report, given, name, job)


def _ours(
    report: dict[str, Any], given: argparse.Namespace, name: str, job: dict[str, Any]
) -> None:
    """Compile, then choose and measure for every batch; each step in a process of its own."""
    found = report["models"][WORKLOADS[name].name]

    def step(what: str, artifact: str, batch: int | None, more: dict[str, Any]) -> dict[str, Any]:
        child = job | more | {"step": what, "artifact": artifact, "batch": batch}
        lines = _child(report, "ours", f"{name}, ours, {what}", child)
        return lines[-1] if lines else {}

    def cell(artifact: str, batch: int) -> dict[str, Any]:
        chosen = step("choose", artifact, batch, {})
        way = {key: chosen[key] for key in ("engine", "options") if key in chosen}
        return chosen | (step("measure", artifact, batch, way) if way else {})

    found |= step("compile", "ours", None, {})
    found["ours"] = []
    for batch in job["batches"]:
        found["ours"].append(cell("ours", batch))
        _save(report, given.folder)
    if job["int8"] and (int8 := step("int8", "int8", None, {})).get("precision"):
        pairs = [(key, cell(artifact, 1)) for key, artifact in (("fp16", "ours"), ("int8", "int8"))]
        found["int8"] = int8 | {f"{key}_us": each["us"] for key, each in pairs if "us" in each}
        _save(report, given.folder)


def _child(report: dict[str, Any], module: str, label: str, job: dict[str, Any]) -> list[Any]:
    """Run a job in a process of its own; return its lines, and note what failed."""
    command = [sys.executable, "-m", f"benchmarks.cuda_models.{module}", json.dumps(job)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        output, errors, code = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as late:
        output = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        errors, code = f"no end after {TIMEOUT_S} s", 1
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    failures = [
        f"{label}, batch {each.get('batch')}: {each['failure']}"
        for each in lines
        if "failure" in each
    ]
    if code:
        last = next(iter(errors.strip().splitlines()[-1:]), f"exit status {code}")
        failures.append(f"{label}: {last}")
    for line in failures:
        print(f"FAILED {line}", flush=True)
        report.setdefault("failures", []).append(line)
    print(f"{label} done", flush=True)
    return lines


def _save(report: dict[str, Any], folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    (folder / "tables.md").write_text(tables.markdown(report))


def _warm_up_model(path: Path) -> None:
    """A product, whose session brings up what every session needs of the device."""
    weight = numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "warm",
        [helper.make_tensor_value_info("x", 1, [8, 8])],
        [helper.make_tensor_value_info("y", 1, [8, 8])],
        [weight],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


if __name__ == "__main__":
    sys.exit(main())
