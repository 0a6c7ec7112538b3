"""ConvInteger and MatMulInteger as float products of dequantized operands."""

import numpy as np
import onnx
import pytest
from harness import apply, check_fires, check_stays, model, ops, run_reference
from onnx import helper

from qgraph.passes.rewrites.integer_to_qdq import IntegerToQDQ

rng = np.random.default_rng(0)
FEEDS = {"a": rng.integers(0, 256, (3, 16)).astype(np.uint8)}


def codes(shape):
    """Weights of seven bits: with eight, onnxruntime's own integer products overflow without VNNI."""
    return rng.integers(-64, 64, shape).astype(np.int8)


def product(zero: str = "az, bz", more: str = "") -> str:
    return f"""net (uint8[3, 16] a) => (float[3, 4] y{more}) {{
      sums = MatMulInteger(a, b, {zero})
      y = Cast<to = 1>(sums)
    }}"""


@pytest.mark.parametrize("columns", [False, True])
def test_matmul_integer_is_exact(columns):
    inits = {
        "b": codes((16, 4)),
        "az": np.uint8(120),
        "bz": np.array([3, -5, 0, 9], np.int8) if columns else np.int8(7),
    }
    out = check_fires(IntegerToQDQ(), model(product(), inits), changed=1, feeds=FEEDS, rtol=0)
    assert ops(out) == ["DequantizeLinear", "DequantizeLinear", "MatMul"]


def test_conv_integer_is_exact():
    text = """net (uint8[1, 3, 6, 6] a) => (float[1, 4, 3, 3] y) {
      sums = ConvInteger<pads = [1, 1, 1, 1], strides = [2, 2]>(a, b, az, bz)
      y = Cast<to = 1>(sums)
    }"""
    inits = {
        "b": codes((4, 3, 3, 3)),
        "az": np.uint8(120),
        "bz": np.int8(0),
    }
    feeds = {"a": rng.integers(0, 256, (1, 3, 6, 6)).astype(np.uint8)}
    out = check_fires(IntegerToQDQ(), model(text, inits), changed=1, feeds=feeds, rtol=0)
    assert ops(out) == ["DequantizeLinear", "DequantizeLinear", "Conv"]


def test_dynamic_quantization_keeps_its_numbers():
    text = """net (float[3, 16] x) => (float[3, 4] y) {
      a, s, az = DynamicQuantizeLinear(x)
      sums = MatMulInteger(a, b, az, bz)
      f = Cast<to = 1>(sums)
      step = Mul(s, bs)
      y = Mul(f, step)
    }"""
    inits = {
        "b": codes((16, 4)),
        "bz": np.int8(0),
        "bs": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
    }
    check_fires(IntegerToQDQ(), model(text, inits), changed=1, rtol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_matmul_integer_to_float(bias):
    arrays = {
        "b": codes((16, 4)),
        "as": np.float32(0.02),
        "bs": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        "az": np.uint8(120),
        "bz": np.zeros(4, np.int8),
        "c": np.arange(4, dtype=np.float32),
    }
    inputs = ["a", "b", "as", "bs", "az", "bz", "c"][: 6 + bias]
    node = helper.make_node("MatMulIntegerToFloat", inputs, ["y"], domain="com.microsoft")
    fed = [helper.make_tensor_value_info("a", 2, [3, 16])]
    out = [helper.make_tensor_value_info("y", 1, [3, 4])]
    constants = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()]
    graph = helper.make_graph([node], "net", fed, out, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    made, reports, _ = apply(IntegerToQDQ(), proto)
    assert reports[-1].changed == 1 and "MatMulIntegerToFloat" not in ops(made)
    want, have = run_reference(proto, FEEDS)["y"], run_reference(made, FEEDS)["y"]
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "inits", "reason"),
    [
        (product(more=", int32[3, 4] sums"), {"az": np.uint8(1), "bz": np.int8(0)}, "graph output"),
        (
            product()
            .replace("Cast<to = 1>(sums)", "Cast<to = 1>(n)")
            .replace("y = ", "n = Neg(sums)\n y = "),
            {"az": np.uint8(1), "bz": np.int8(0)},
            "read by Neg",
        ),
        (product(), {"az": np.array([1, 2, 3], np.uint8), "bz": np.int8(0)}, "a zero point a row"),
    ],
)
def test_what_stays(text, inits, reason):
    inits = {"b": np.ones((16, 4), np.int8), **inits}
    check_stays(IntegerToQDQ(), model(text, inits), reason)
