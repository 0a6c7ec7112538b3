"""Peak memory of compiling a model larger than protobuf's 2 GB.

    python -m benchmarks.large_model [--gigabytes 3]

Writes a stack of MatMul + Add + Relu layers with random weights in an external data file, and
reports the peak resident memory of two processes: one that loads it, runs every exact pass and
saves it (target: 4 GB for a model of 3 GB, that is the weights once, never a second copy), and one
that runs the whole `compile --precision fp32`, where onnxruntime's own copies count too.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH = 4096
PEAK = """
def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
"""
REWRITE = """
import sys, time
from pathlib import Path
from qgraph import Pipeline, flow, load, save
start = time.perf_counter()
graph = load(sys.argv[1])
Pipeline(flow.exact_passes({})).run(graph)
Path(sys.argv[2]).mkdir()
save(graph, sys.argv[2] + "/model.onnx")
print(time.perf_counter() - start, peak())
"""
COMPILE = """
import sys, time
import qgraph
start = time.perf_counter()
artifact = qgraph.compile(sys.argv[1], output=sys.argv[2], precision="fp32")
print(time.perf_counter() - start, peak())
"""


def build(path: Path, gigabytes: float) -> None:
    """Write the model; weights go to disk one layer at a time."""
    layers = max(1, round(gigabytes * 1e9 / (WIDTH * WIDTH * 4)))
    rng = np.random.default_rng(0)
    nodes, tensors, value = [], [], "x"
    data = path.with_suffix(".data")
    with data.open("wb") as file:
        for index in range(layers):
            for name, shape in ((f"w{index}", [WIDTH, WIDTH]), (f"b{index}", [WIDTH])):
                array = rng.standard_normal(shape, dtype=np.float32) * np.float32(WIDTH**-0.5)
                tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
                tensor.data_location = TensorProto.EXTERNAL
                for key, entry in (
                    ("location", data.name),
                    ("offset", file.tell()),
                    ("length", array.nbytes),
                ):
                    tensor.external_data.add(key=key, value=str(entry))
                array.tofile(file)
                tensors.append(tensor)
            nodes += [
                helper.make_node("MatMul", [value, f"w{index}"], [f"m{index}"], f"matmul{index}"),
                helper.make_node("Add", [f"m{index}", f"b{index}"], [f"a{index}"], f"add{index}"),
                helper.make_node("Relu", [f"a{index}"], [f"r{index}"], f"relu{index}"),
            ]
            value = f"r{index}"
    shape = ["n", WIDTH]
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)


def main() -> int:
    """Build, compile in a child, print the row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as folder:
        path = Path(folder) / "stack.onnx"
        start = time.perf_counter()
        build(path, args.gigabytes)
        size = path.stat().st_size + path.with_suffix(".data").stat().st_size
        print(f"model {size / 1e9:.2f} GB, written in {time.perf_counter() - start:.0f} s")
        for label, code in (("load, all exact passes, save", REWRITE), ("compile", COMPILE)):
            out = Path(folder) / label.split()[0].strip(",")
            command = [sys.executable, "-c", PEAK + code, str(path), str(out)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return 1
            seconds, peak = map(float, done.stdout.split())
            print(f"{label}: {seconds:.0f} s, peak {peak / 1e9:.2f} GB, {peak / size:.2f} x model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
