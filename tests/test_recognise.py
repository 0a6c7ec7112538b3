"""Quantized models are recognised by their operators, wherever these stand."""

import numpy as np
import onnx
import pytest
from harness import model
from onnx import helper

from qgraph import onnx_io
from qgraph.recognise import quantized_ops


def counted(proto: onnx.ModelProto) -> dict[str, int]:
    return quantized_ops(onnx_io.load(proto))


def test_float_models_have_none() -> None:
    text = """g (float[2, 3] x) => (int64[2, 3] y) {
      r = Round (x)  q = Cast <to = 7> (r)  y = Clip (q) }"""
    assert counted(model(text)) == {}


def test_standard_operators() -> None:
    text = """g (float[2, 3] x, uint8[3, 2] w) => (float[2, 3] y, int32[2, 2] z) {
      q = QuantizeLinear (x, scale, zero)
      y = DequantizeLinear (q, scale, zero)
      y2 = DequantizeLinear (q, scale, zero)
      d, s, p = DynamicQuantizeLinear (x)
      z = MatMulInteger (d, w)
    }"""
    constants = {"scale": np.array(0.5, np.float32), "zero": np.array(3, np.uint8)}
    assert counted(model(text, constants)) == {
        "DequantizeLinear": 2,
        "DynamicQuantizeLinear": 1,
        "MatMulInteger": 1,
        "QuantizeLinear": 1,
    }


@pytest.mark.parametrize(
    ("domain", "op_type"),
    [
        ("com.microsoft", "MatMulNBits"),
        ("com.microsoft", "QAttention"),
        ("com.microsoft", "QGemm"),
        ("com.microsoft", "QLinearAdd"),
        ("com.microsoft", "MatMulBnb4"),
        ("com.microsoft", "GemmFloat8"),
        ("com.microsoft", "DynamicQuantizeMatMul"),
        ("org.openvinotoolkit", "FakeQuantize"),
        ("trt", "trt_FakeQuantWithMinMax"),
        ("torch", "fake_quantize_per_tensor_affine"),
    ],
)
def test_contributed_operators(domain: str, op_type: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21, "{domain}" : 1]>
    g (float[2] x, bool c) => (float[2] y) {{
      y = If (c) <then_branch = a () => (float[2] ya) {{ ya = {domain}.{op_type} (x) }},
                  else_branch = b () => (float[2] yb) {{ yb = Neg (x) }}>
    }}"""
    proto = onnx.parser.parse_model(text)
    assert counted(proto) == {op_type: 1}


def test_inside_functions() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "s"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["b"]),
    ]
    function = helper.make_function(
        "f", "FQ", ["a", "s"], ["b"], nodes, [helper.make_opsetid("", 21)]
    )
    text = """<ir_version: 10, opset_import: ["" : 21, "f" : 1]>
    g (float[2] x, float s) => (float[2] y) { y = f.FQ (x, s) }"""
    proto = onnx.parser.parse_model(text)
    proto.functions.append(function)
    assert counted(proto) == {"DequantizeLinear": 1, "QuantizeLinear": 1}
