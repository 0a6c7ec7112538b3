"""Small models for the runtime tests."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper, parser


def text(body: str, opset: int = 21) -> onnx.ModelProto:
    """A model from ONNX text: `g (inputs) => (outputs) { nodes }`."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> {body}')
    onnx.checker.check_model(model)
    return model


def affine() -> onnx.ModelProto:
    return text(
        "g (float[N, 3] x, float[3] w) => (float[N, 3] y, float[N, 3] z)"
        " { p = Mul(x, w) y = Relu(p) z = Neg(p) }"
    )


def small_cnn(bias: float = 0.0) -> onnx.ModelProto:
    """Conv 3 -> 8, BatchNormalization, Relu, global mean: float32 [N, 3, 16, 16] to [N, 8]."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32) * 0.2,
        "scale": rng.uniform(0.5, 2, 8).astype(np.float32),
        "shift": np.full(8, bias, np.float32),
        "mean": rng.standard_normal(8).astype(np.float32),
        "var": rng.uniform(0.5, 2, 8).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["b"], "bn"),
        helper.make_node("Relu", ["b"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["y"], name="flat"),
    ]
    return graph(nodes, {"x": (1, ["N", 3, 16, 16])}, {"y": (1, ["N", 8])}, weights)


def qdq_conv() -> onnx.ModelProto:
    """A Conv with uint8 activations and int8 weights in Q/DQ form; any engine may fuse it."""
    rng = np.random.default_rng(1)
    weights = {
        "sx": np.float32(0.05),
        "zx": np.uint8(128),
        "wq": rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "sw": np.full(4, 0.01, np.float32),
        "zw": np.zeros(4, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"], name="xq"),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"], name="xd"),
        helper.make_node("DequantizeLinear", ["wq", "sw", "zw"], ["wd"], name="wd", axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"], name="conv"),
        helper.make_node("QuantizeLinear", ["c", "sx", "zx"], ["cq"], name="cq"),
        helper.make_node("DequantizeLinear", ["cq", "sx", "zx"], ["y"], name="cd"),
    ]
    return graph(nodes, {"x": (1, [1, 3, 8, 8])}, {"y": (1, [1, 4, 6, 6])}, weights)


def graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    weights: dict[str, Any],
) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def bf16(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=ml_dtypes.bfloat16)
