"""How fast onnxruntime's CPU provider runs each form of a quantized weight.

    python -m benchmarks.weight_forms [ROUNDS]

One MatMul of 1024 x 4096, in float32 and in every form, one thread. Times them in turn in one run
and prints how many times as fast as float32 each is, by the shortest times, for one row of data
(decoding) and 64 rows, with the bytes a weight in the file.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from qgraph import onnx_io
from qgraph.encoding import Spec
from qgraph.facts import QuantizedWeight
from qgraph.passes.weight_forms import put
from qgraph.passes.weight_forms.bnb4 import block_codebook, matmul_bnb4
from qgraph.passes.weight_forms.cast_scale import cast_scale
from qgraph.passes.weight_forms.codebook import channel_codebook
from qgraph.passes.weight_forms.dequantize import dequantize_linear
from qgraph.passes.weight_forms.matmul_nbits import matmul_nbits
from qgraph.passes.weight_forms.mixed_int8 import mixed_int8
from qgraph.passes.weights.codebooks import nf4
from qgraph.passes.weights.hqq import hqq_float
from qgraph.passes.weights.outliers import split_outliers
from qgraph.passes.weights.results import ChannelCodebook
from qgraph.passes.weights.rtn import round_to_nearest
from qgraph.pipeline import Reject

DEPTH, WIDTH, ROWS = 1024, 4096, (1, 64)


def matmul(weight: np.ndarray) -> onnx.ModelProto:
    """Build the model of one MatMul."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]>\n'
        f"g (float[M,{DEPTH}] x) => (float[M,{WIDTH}] y) {{ y = MatMul (x, w) }}"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return proto


def written(weight: np.ndarray, form: Callable[..., Any], result: Any, **options: Any) -> bytes:
    """Return the model with a result in a form."""
    graph = onnx_io.load(matmul(weight))
    [node] = graph.nodes("MatMul")
    value = form(graph, node, result, **options)
    assert not isinstance(value, Reject), value.reason
    put(graph, node, value)
    graph.drop_unread_initializers()
    return onnx_io.to_proto(graph).SerializeToString()


def models(weight: np.ndarray) -> dict[str, bytes]:
    """Return every form by name, float32 first."""

    def rounded(dtype: str, block: int = 128) -> QuantizedWeight:
        spec = Spec(dtype, dtype.startswith("int"), axis=0 if block else 1, block=block)
        return QuantizedWeight(*round_to_nearest(weight, spec, None))

    found = {"float32": matmul(weight).SerializeToString()}
    blocks, column = rounded("uint4"), rounded("int8", 0)
    found["dequantize_linear, uint4"] = written(weight, dequantize_linear, blocks)
    found["dequantize_linear, int8 a column"] = written(weight, dequantize_linear, column)
    narrow = {"uint2": rounded("uint2"), "uint4": blocks, "uint8": rounded("uint8")}
    for name, result in (narrow | {"int8 a column": column}).items():
        for level in (1, 4):
            form = written(weight, matmul_nbits, result, accuracy_level=level)
            found[f"matmul_nbits, {name}, level {level}"] = form
    floats = hqq_float(weight, Spec("uint4", False, axis=0, block=128))
    found["matmul_nbits, float zero points"] = written(weight, matmul_nbits, floats)
    found["cast_scale, float zero points"] = written(weight, cast_scale, floats)
    found["cast_scale, int8 a column"] = written(weight, cast_scale, column)
    levels = nf4(weight)
    found["matmul_bnb4"] = written(weight, matmul_bnb4, levels)
    found["block_codebook"] = written(weight, block_codebook, levels)
    codes = np.random.default_rng(1).integers(0, 16, weight.shape).astype(np.uint8)
    none = np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    channels = ChannelCodebook(codes, weight[:16], *none, width=4)
    found["channel_codebook"] = written(weight, channel_codebook, channels)
    peak = np.ones(DEPTH)
    peak[::100] = 10
    mixed = split_outliers(weight, peak)
    found["mixed_int8, dequantize"] = written(weight, mixed_int8, mixed)
    found["mixed_int8, dynamic"] = written(weight, mixed_int8, mixed, kernel="dynamic")
    form = written(weight, mixed_int8, mixed, kernel="nbits", accuracy_level=4)
    found["mixed_int8, nbits, level 4"] = form
    return found


def session(model: bytes) -> ort.InferenceSession:
    """Open a model on one thread; onnxruntime may fuse, but not round the data."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main() -> int:
    """Time every form, print one table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    rng = np.random.default_rng(0)
    files = models(rng.standard_normal((DEPTH, WIDTH)).astype(np.float32))
    sessions = {name: session(model) for name, model in files.items()}
    best = {(name, rows): float("inf") for name in files for rows in ROWS}
    for rows in ROWS:
        x = rng.standard_normal((rows, DEPTH)).astype(np.float32)
        for _ in range(rounds):
            for name, each in sessions.items():
                start = time.perf_counter()
                each.run(None, {"x": x})
                best[name, rows] = min(best[name, rows], time.perf_counter() - start)
    table = Table("form", "bytes a weight", *(f"{rows} rows" for rows in ROWS))
    for name, model in files.items():
        times = (f"{best['float32', rows] / best[name, rows]:.2f}" for rows in ROWS)
        table.add_row(name, f"{len(model) / (DEPTH * WIDTH):.2f}", *times)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
