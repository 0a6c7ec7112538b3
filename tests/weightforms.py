"""What every weight form is held to: its model computes x @ dequantize(), saved and loaded again."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from harness import interface, model

import qgraph
from qgraph import onnx_io
from qgraph.encoding import dequantize
from qgraph.facts import QuantizedWeight
from qgraph.graph import Graph
from qgraph.passes.weight_forms import put
from qgraph.pipeline import Reject
from qgraph.runtime.exact_products import overflows, with_exact_products

TYPES = {np.float32: "float", np.float16: "float16"}
# Of the largest product. Half precision rounds scales, products and sums.
RTOL = {np.float32: 1e-5, np.float16: 4e-3}


def matmul(shape: tuple[int, ...], dtype: Any = np.float32, opset: int = 21) -> onnx.ModelProto:
    """One MatMul `layer` by a weight of `shape`, with any number of rows."""
    kind, batch = TYPES[dtype], "".join(f"{n}, " for n in shape[:-2])
    return model(
        f"g ({kind}[{batch}M, {shape[-2]}] x) => ({kind}[{batch}M, {shape[-1]}] y)"
        " { [layer] y = MatMul (x, w) }",
        {"w": np.zeros(shape, dtype)},
        opset=opset,
        ir_version=13 if opset >= 25 else 10,
    )


def simulated(result: Any) -> np.ndarray:
    if isinstance(result, QuantizedWeight):
        return dequantize(result.codes, result.encoding)
    return result.dequantize()


def refusal(form: Any, result: Any, proto: onnx.ModelProto, **options: Any) -> str:
    """The reason why a form leaves a model alone, untouched."""
    graph = onnx_io.load(proto)
    [node] = graph.nodes("MatMul")
    outcome = form(graph, node, result, **options)
    assert isinstance(outcome, Reject)
    assert onnx_io.to_proto(graph) == onnx_io.to_proto(onnx_io.load(proto))
    return outcome.reason


def write(form: Any, result: Any, proto: onnx.ModelProto, **options: Any) -> Graph:
    """A model with `result` in the form, saved and loaded."""
    graph = onnx_io.load(proto)
    [node] = graph.nodes("MatMul")
    value = form(graph, node, result, **options)
    assert not isinstance(value, Reject), value.reason
    put(graph, node, value)
    graph.drop_unread_initializers()
    with tempfile.TemporaryDirectory() as folder:
        qgraph.save(graph, Path(folder) / "m.onnx")
        return qgraph.load((Path(folder) / "m.onnx").read_bytes())


def run(proto: onnx.ModelProto, x: np.ndarray, optimised: bool = False) -> np.ndarray:
    """The product; optimised, with the option that keeps onnxruntime's activations in float."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if overflows():
        proto = with_exact_products(copy.deepcopy(proto))
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def check_form(
    form: Any,
    result: Any,
    *,
    dtype: Any = np.float32,
    opset: int = 21,
    rows: tuple[int, ...] = (1, 5),
    both: bool = True,
    **options: Any,
) -> onnx.ModelProto:
    """The form's model is valid and gives x @ dequantize(), with `both` optimised too."""
    weight = simulated(result).astype(np.float64)
    proto = matmul(weight.shape, dtype, opset)
    out = onnx_io.to_proto(write(form, result, proto, **options))
    onnx.checker.check_model(out, full_check=True)
    assert interface(out) == interface(proto)
    assert any(node.name == "layer" for node in out.graph.node)
    rng = np.random.default_rng(1)
    for count in rows:
        x = rng.standard_normal((*weight.shape[:-2], count, weight.shape[-2])).astype(dtype)
        want = x.astype(np.float64) @ weight
        for optimised in (False, True) if both else (False,):
            have = run(out, x, optimised)
            assert have.dtype == dtype and have.shape == want.shape
            error = np.abs(have - want).max() / np.abs(want).max()
            assert error <= RTOL[dtype], f"{error:.2g}, {count} rows, optimised {optimised}"
    return out
