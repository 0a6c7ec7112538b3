"""Time and memory of quantizing the weights of decoders of growing depth.

    python -m benchmarks.weight_stack [--width 1024 --hidden 2752 --blocks 2,4,8]
    python -m benchmarks.weight_stack --width 4096 --hidden 11008 --blocks 2,8   # blocks of a 7 B

Writes a Llama decoder with random weights and a small vocabulary in an external data file, one
weight at a time. A process of its own then loads it, runs the exact passes and the quantizing ones
of a recipe, and saves the packed model. Wanted: time linear in depth, and memory that does not grow
with it. `cpu` is the processor time of all its threads, in seconds, which others on the machine
disturb less than `seconds`. `rss` is the peak of resident memory; `anonymous` that of its part which no file stands
behind: pages of files are given back whenever something else needs the room.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from models.zoo.llama import Config, shapes
from models.zoo.llama_onnx import build

VOCABULARY, HEAD_SIZE = 512, 128
# Between two looks at the process's memory, seconds.
_LOOK = 0.02


def write(path: Path, config: Config) -> None:
    """Write the decoder; its matrices are drawn while they are written, one at a time."""
    from qgraph import onnx_io
    from qgraph.graph import Graph

    blank = {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes(config).items()}
    model = build(config, blank)
    for index, value in enumerate(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
            continue
        if value.name and value.name.startswith("rope"):
            continue
        draw = partial(_drawn, index, tuple(tensor.shape.numpy()), value.name or "")
        value.const_value = ir.LazyTensor(draw, tensor.dtype, tensor.shape, name=value.name)
    onnx_io.save(Graph(model), path, external=True)


def _drawn(seed: int, shape: tuple[int, ...], name: str) -> ir.TensorProtocol:
    """Return weights with which all values keep a size near 1."""
    array = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    array *= np.float32(1 if name.startswith("embed") else shape[0] ** -0.5)
    return ir.Tensor(array, name=name)


def status(field: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) << 10


class Watch(threading.Thread):
    """Looks at the anonymous memory of this process again and again.

    Attributes:
        peak: The most that was seen, bytes.
    """

    def __init__(self) -> None:
        """Start looking."""
        super().__init__(daemon=True)
        self.peak, self._over = 0, threading.Event()
        self.start()

    def run(self) -> None:
        """Look until `stop`."""
        while not self._over.wait(_LOOK):
            self.peak = max(self.peak, status("RssAnon"))

    def stop(self) -> int:
        """Return the peak."""
        self._over.set()
        self.join()
        return self.peak


def quantize(recipe: str, model: str, output: str, windows: int, length: int) -> dict[str, Any]:
    """Quantize in this process and save the result."""
    from qgraph import flow, onnx_io
    from qgraph.context import Context
    from qgraph.pipeline import Pipeline
    from qgraph.recipe import load_recipe, with_settings
    from qgraph.target import target

    name, *settings = recipe.split()
    options = with_settings(load_recipe(name), [f"weight_only.{s}" for s in settings]).passes
    rng = np.random.default_rng(0)
    data = [{"input_ids": rng.integers(0, VOCABULARY, (1, length))} for _ in range(windows)]
    watch, processor, start = Watch(), time.process_time(), time.perf_counter()
    graph = onnx_io.load(model)
    Pipeline(flow.exact_passes({})).run(graph)
    passes = flow.build(flow.QUANTIZING["int4"], dict(options))
    context = Context(target=target("cpu"), data=data)
    stages = Pipeline(passes, given=graph.facts.present()).run(graph, context)
    files = onnx_io.save(graph, output, external=True)
    end = time.perf_counter()
    layers = next(s for s in stages if s.name == "weight_only").report.layers
    return {
        "seconds": end - start,
        "cpu": time.process_time() - processor,
        "layers": len(layers),
        "bytes": sum(file.stat().st_size for file in files),
        "rss": status("VmHWM"),
        "anonymous": watch.stop(),
    }


def measured(recipe: str, model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Quantize in a process of its own.

    Raises:
        RuntimeError: It failed.
    """
    output = model.parent / "packed"
    output.mkdir()
    command = [sys.executable, "-m", "benchmarks.weight_stack", "--child", recipe]
    command += ["--model", str(model), "--output", str(output / "model.onnx")]
    command += ["--windows", str(args.windows), "--length", str(args.length)]
    environment = {**os.environ, "QGRAPH_CACHE": "off", "TMPDIR": str(model.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    for file in output.iterdir():
        file.unlink()
    output.rmdir()
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> int:
    """Print a row for every depth and recipe, with ratios to the first depth's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=2752)
    parser.add_argument("--blocks", default="2,4,8")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--recipes", default="rtn,gptq", help="as for benchmarks.weights")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="", help=argparse.SUPPRESS)
    parser.add_argument("--output", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        row = quantize(args.child, args.model, args.output, args.windows, args.length)
        print(json.dumps(row))
        return 0
    print(
        "| recipe | blocks | float GB | packed GB | seconds | cpu | rss GB | anonymous GB | "
        "times the cpu, rss, anonymous |\n|---|---|---|---|---|---|---|---|---|"
    )
    first: dict[str, dict[str, Any]] = {}
    for blocks in map(int, args.blocks.split(",")):
        heads = max(1, args.width // HEAD_SIZE)
        config = Config(blocks, args.width, heads, heads, args.hidden, VOCABULARY, 1024)
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as folder:
            model = Path(folder) / "stack.onnx"
            write(model, config)
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
            for recipe in map(str.strip, args.recipes.split(",")):
                row = measured(recipe, model, args)
                base = first.setdefault(recipe, row)
                ratios = ", ".join(
                    f"{row[key] / base[key]:.2f}" for key in ("cpu", "rss", "anonymous")
                )
                print(
                    f"| {recipe} | {blocks} | {size / 1e9:.2f} | {row['bytes'] / 1e9:.2f} | "
                    f"{row['seconds']:.1f} | {row['cpu']:.1f} | {row['rss'] / 1e9:.2f} | "
                    f"{row['anonymous'] / 1e9:.2f} | {ratios} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
