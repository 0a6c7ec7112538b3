"""Weights in few bits on a decoder: perplexity, time and memory of every recipe.

    python -m benchmarks.weights MODEL.onnx --calibrate WINDOWS.npz --score WINDOWS.npz
    python -m benchmarks.weights MODEL.onnx ... --recipes "gptq,gptq group=32 symmetric=true"

Data: `input_ids` int [n, length]. A recipe is a name from `qgraph recipes` (`best` is the default
recipe's with its precision int4), then options of the pass `weight_only`. Every recipe runs in a
process of its own: the exact passes, then the quantizing ones on all calibration windows (their
time, and the peak memory of the process above that of loading the model), then onnxruntime's CPU
provider scores the packed artifact. The float model is scored and timed in the same way; "forward"
is one run of it over the calibration windows without its head, what any sequential method needs.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEFAULT = (
    "fp32",
    "rtn",
    "rtn symmetric=true",
    "rtn group=32",
    "hqq",
    "nf4",
    "squeeze",
    "llm-int8",
    "rtn bits=8 group=0",
    "gptq",
    "gptq symmetric=true",
    "awq",
    "awq+gptq",
    "awq+gptq symmetric=true",
    "awq+gptq group=32",
    "awq+gptq bits=3",
    "best",
    "best symmetric=true",
    "best group=32",
    "best bits=3",
)


def windows(path: str) -> NDArray[np.int64]:
    """Return token ids, int64 [n, length]."""
    ids: NDArray[np.int64] = np.load(path)["input_ids"].astype(np.int64)
    return ids


def perplexity(model: Path, ids: NDArray[np.int64], threads: int) -> float:
    """Return exp of the mean negative log-likelihood of each next token."""
    from qgraph.runtime import backend
    from qgraph.runtime.backend import EngineOptions

    total, count = 0.0, 0
    with backend("onnxruntime-cpu").open(model, EngineOptions(threads=threads)) as session:
        for window in ids:
            logits = session.run({"input_ids": window[None]})["logits"][0, :-1].astype(np.float64)
            top = logits.max(axis=-1)
            norm = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
            total += float((norm - logits[np.arange(len(norm)), window[1:]]).sum())
            count += len(norm)
    return float(np.exp(total / count))


def settings_of(recipe: str) -> tuple[str, list[str]]:
    """Split `gptq group=32` into the recipe's name and settings."""
    name, *options = recipe.split()
    return name, [f"weight_only.{option}" for option in options]


def run(recipe: str, model: str, calibration: NDArray[np.int64], output: Path) -> dict[str, Any]:
    """Quantize in this process; write the packed model to `output`."""
    from qgraph import flow, onnx_io
    from qgraph.context import Context
    from qgraph.pipeline import Pipeline
    from qgraph.recipe import load_recipe, with_settings
    from qgraph.target import target

    graph = onnx_io.load(model)
    exact = Pipeline(flow.exact_passes({})).run(graph)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    layers: list[dict[str, Any]] = []
    if recipe != "fp32":
        name, settings = settings_of(recipe)
        options = dict(with_settings(load_recipe(name), settings).passes)
        context = Context(target=target("cpu"), data=[{"input_ids": w[None]} for w in calibration])
        precision = "int4"
        passes = flow.build(flow.QUANTIZING[precision], options)
        given = graph.facts.present()
        stages = Pipeline(passes, given=given).run(graph, context)
        layers = next(s for s in stages if s.name == "weight_only").report.layers
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = onnx_io.save(graph, output)
    return {
        "seconds": seconds,
        "exact_seconds": sum(stage.seconds for stage in exact),
        "solver_seconds": sum(layer["seconds"] for layer in layers),
        "peak_mb": peak / 1024,
        "extra_mb": (peak - loaded) / 1024,
        "file_mb": sum(file.stat().st_size for file in files) / 1e6,
        "error": float(np.mean([layer["error"] for layer in layers])) if layers else 0.0,
        "bits": float(np.mean([layer["bits"] for layer in layers])) if layers else 32.0,
    }


def forward_seconds(model: str, calibration: NDArray[np.int64]) -> float:
    """Return the time of one run over the windows, up to the head's input."""
    from qgraph import flow, onnx_io
    from qgraph.context import Context
    from qgraph.passes.weight_only.boundary import Boundary
    from qgraph.passes.weight_only.layers import find_layers
    from qgraph.passes.weight_only.observe import keep_inputs, run_stage
    from qgraph.passes.weight_only.stages import cut
    from qgraph.pipeline import Pipeline

    graph = onnx_io.load(model)
    Pipeline(flow.exact_passes({})).run(graph)
    layers, _ = find_layers(graph, exclude=(), head=True, least=1)
    # Only the head counts as a layer, so everything in front of it is one stage.
    (stage,) = cut(graph, layers[-1:])
    stage.keeps = [layers[-1].data]
    with Boundary(1 << 31) as boundary:
        keep_inputs([stage], [{"input_ids": w[None]} for w in calibration], boundary)
        start = time.perf_counter()
        run_stage(graph, stage, {}, boundary, Context(), "forward")
        return time.perf_counter() - start


def child(args: argparse.Namespace) -> None:
    """Do one recipe and print its row as JSON."""
    calibration, score = windows(args.calibrate), windows(args.score)[: args.limit]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model.onnx"
        row = run(args.child, args.model, calibration[: args.windows], output)
        row["perplexity"] = perplexity(output, score, args.threads)
    if args.child == "fp32":
        row["forward_seconds"] = forward_seconds(args.model, calibration[: args.windows])
    print(json.dumps({"recipe": args.child, **row}))


def parent(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every recipe in a process of its own; several at a time with `--jobs`."""
    recipes = [r.strip() for r in args.recipes.split(",")] if args.recipes else list(DEFAULT)

    def one(recipe: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.weights", *sys.argv[1:], "--child", recipe]
        environment = {**os.environ, "QGRAPH_CACHE": "off"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            return {"recipe": recipe, "failed": (done.stderr.strip().splitlines() or ["?"])[-1]}
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        print(line(row, None), flush=True)
        return row

    with ThreadPoolExecutor(args.jobs) as pool:
        return list(pool.map(one, recipes))


def line(row: dict[str, Any], base: float | None) -> str:
    """Return a row of the table."""
    if "failed" in row:
        return f"| {row['recipe']} | failed: {row['failed']} |"
    ratio = f"{row['perplexity'] / base:.3f}" if base else ""
    return (
        f"| {row['recipe']} | {row['bits']:.2f} | {row['perplexity']:.2f} | {ratio} | "
        f"{row['error']:.4f} | {row['seconds']:.1f} | {row['solver_seconds']:.1f} | "
        f"{row['extra_mb']:.0f} | {row['file_mb']:.0f} |"
    )


def main() -> int:
    """Print the table; write the rows where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibrate", required=True)
    parser.add_argument("--score", required=True)
    parser.add_argument("--recipes", default="")
    parser.add_argument("--windows", type=int, default=64, help="calibration windows")
    parser.add_argument("--limit", type=int, default=12, help="windows scored")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="recipes at a time")
    parser.add_argument("--json", default="")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return 0
    rows = parent(args)
    base = next((row["perplexity"] for row in rows if row["recipe"] == "fp32"), None)
    print(
        "\n| recipe | bits a weight | perplexity | times fp32 | mean error | seconds | solver | "
        "memory MB | file MB |\n|---|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(line(row, base) for row in rows))
    forward = next((row.get("forward_seconds") for row in rows), None)
    if forward:
        print(f"\nforward pass over {args.windows} windows: {forward:.1f} s")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
