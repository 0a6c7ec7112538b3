"""Whether merging q, k and v into one MatMul and a Split pays, on onnxruntime's CPU provider.

    python -m benchmarks.horizontal_matmul [ROUNDS]

Each case is three linear layers with biases on one input, each followed by the Reshape and
Transpose that attention does to its result. Times the model with and without the fusion
`horizontal_matmul`, in turn in one run, float32, two threads, and prints the medians. The default
of the fusion's option `max_rows` rests on this table.
"""

import statistics
import sys
import time

import numpy as np
import onnx
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from qgraph import onnx_io
from qgraph.passes.fusions.horizontal_matmul import HorizontalMatMul
from qgraph.pipeline import Pipeline

HEAD_SIZE = 64
# (rows, features in, features out of each layer)
CASES = [
    *((rows, 384, 384) for rows in (1, 8, 32, 128, 512)),
    *((rows, 768, 768) for rows in (1, 8, 32, 128)),
    *((rows, 576, 192) for rows in (1, 32, 128)),
    *((rows, 128, 128) for rows in (1, 32, 128)),
]


def attention_inputs(rows: int, features: int, columns: int) -> onnx.ModelProto:
    """Build the model: x [1, rows, features] to q, k and v [1, heads, rows, HEAD_SIZE]."""
    rng = np.random.default_rng(0)
    nodes, constants = [], {"sizes": np.array([1, rows, columns // HEAD_SIZE, HEAD_SIZE])}
    for name in "qkv":
        weight = rng.standard_normal((features, columns)) / features**0.5
        constants[f"{name}_weight"] = weight.astype(np.float32)
        constants[f"{name}_bias"] = rng.standard_normal(columns).astype(np.float32)
        nodes.append(f"{name}1 = MatMul (x, {name}_weight)")
        nodes.append(f"{name}2 = Add ({name}1, {name}_bias)")
        nodes.append(f"{name}3 = Reshape ({name}2, sizes)")
        nodes.append(f"{name} = Transpose <perm = [0, 2, 1, 3]> ({name}3)")
    shape = f"float[1,{columns // HEAD_SIZE},{rows},{HEAD_SIZE}]"
    body = "\n".join(nodes)
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]>\n'
        f"g (float[1,{rows},{features}] x) => ({shape} q, {shape} k, {shape} v) {{ {body} }}"
    )
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def merged(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Apply the fusion, whatever the number of rows."""
    graph = onnx_io.load(proto)
    (stage,) = Pipeline([HorizontalMatMul(max_rows=1 << 30)]).run(graph)
    assert stage.report.changed == 1
    return onnx_io.to_proto(graph)


def session(proto: onnx.ModelProto) -> ort.InferenceSession:
    """Open a model as a user would, on two threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    providers = ["CPUExecutionProvider"]
    return ort.InferenceSession(proto.SerializeToString(), options, providers=providers)


def medians(sessions: list[ort.InferenceSession], x: np.ndarray, rounds: int) -> list[float]:
    """Median microseconds of each session, run in turn."""
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for each, taken in zip(sessions, times, strict=True):
            start = time.perf_counter()
            each.run(None, {"x": x})
            taken.append((time.perf_counter() - start) * 1e6)
    return [statistics.median(taken) for taken in times]


def main() -> int:
    """Time every case, print one table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    table = Table("rows", "layers", "three us", "one us", "times as fast")
    for rows, features, columns in CASES:
        proto = attention_inputs(rows, features, columns)
        sessions = [session(proto), session(merged(proto))]
        x = np.random.default_rng(1).standard_normal((1, rows, features)).astype(np.float32)
        medians(sessions, x, 10)
        apart, one = medians(sessions, x, max(20, rounds // max(1, rows // 32)))
        layers = f"3 x {features} -> {columns}"
        table.add_row(str(rows), layers, f"{apart:.0f}", f"{one:.0f}", f"{apart / one:.2f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
