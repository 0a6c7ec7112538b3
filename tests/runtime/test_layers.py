"""Layers of onnxruntime's sessions beside a plan; TensorRT's are in test_tensorrt_layers.py."""

import numpy as np
import onnx
import pytest

from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions, ExecutedOp
from qgraph.runtime.layers import Mapped, layers_of, map_layers, once

MODEL = """<ir_version: 9, opset_import: ["": 17]> g (float[n, 64] x) => (float[n, 8] y)
    <float s = {0.02}, uint8 z = {128}, float t = {0.01}, float u = {0.5}> {
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear(w, t)
    a = MatMul(xd, wd)
    aq = QuantizeLinear(a, u, z)
    y0 = DequantizeLinear(aq, u, z)
    y = Exp(y0)
}"""
NAMES = ["xq", "xd", "wd", "product", "aq", "y0", "exp"]


@pytest.fixture(scope="module")
def found() -> dict[str, Mapped]:
    model = onnx.parser.parse_model(MODEL)
    for node, name in zip(model.graph.node, NAMES, strict=True):
        node.name = name
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (64, 8)).astype(np.int8)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    feeds = {"x": rng.standard_normal((4, 64)).astype(np.float32)}
    plan = {"product": "int8", "exp": "int8"}
    options = EngineOptions(profile=True)
    with backend("onnxruntime-cpu").open(model.SerializeToString(), options) as session:
        layers = layers_of(session, feeds, NAMES)
    mapped = map_layers(layers, plan)
    # Exp has no kernel in integers: it was planned in vain, and comes first.
    assert mapped[0].layer.nodes == ("exp",) and not mapped[0].as_planned
    return {each.layer.kind: each for each in mapped}


def test_kernels_that_onnxruntime_made_are_found_in_the_model(found: dict[str, Mapped]) -> None:
    product = found["QLinearMatMul"]
    assert product.layer.nodes == ("product",) and product.planned == "int8" and product.as_planned
    assert "int8" in product.layer.reads and product.layer.writes == ("int8",)
    assert product.layer.time_us is not None and product.layer.tactic == "CPU"


def test_what_only_converts_is_said(found: dict[str, Mapped]) -> None:
    assert {kind for kind, each in found.items() if each.layer.reformats} == {
        "QuantizeLinear",
        "DequantizeLinear",
    }
    assert found["Exp"].layer.reads == ("fp32",)


def test_what_was_given_to_a_provider_and_timed_counts_once() -> None:
    timed = ExecutedOp("a", "MatMul", "CUDAExecutionProvider", ("float16",), ("float16",), 3.0)
    given = ExecutedOp("a", "MatMul", "CUDAExecutionProvider")
    compiled = ExecutedOp("b", "Conv", "OpenVINOExecutionProvider")
    assert once([timed, given, compiled]) == [timed, compiled]
