"""int32 biases as float constants."""

import numpy as np
import onnx
import pytest
from harness import check_fires, check_stays, model, ops, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from qgraph.passes.rewrites.float_bias import FloatBias

CONV = """net (float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y) {
  b = DequantizeLinear<axis = 0>(codes, scale)
  y = Conv<kernel_shape = [1, 1]>(x, w, b)
}"""


def arrays(codes, scale):
    return {"codes": codes, "scale": scale, "w": np.ones((3, 2, 1, 1), np.float32)}


def test_bias_becomes_a_constant():
    proto = model(
        CONV, arrays(np.array([1, -7, 2**30], np.int32), np.array([0.1, 3e-5, 1e-9], np.float32))
    )
    out = check_fires(FloatBias(), proto, changed=1)
    assert ops(out) == ["Conv"]
    assert not any(t.data_type == onnx.TensorProto.INT32 for t in out.graph.initializer)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=6),
    st.floats(2.0**-30, 2.0**-3, width=32),
    st.booleans(),
)
def test_every_bit_is_what_dequantize_linear_gives(codes, scale, per_channel):
    codes = np.array(codes, np.int32)
    scales = np.float32(scale) * np.arange(1, codes.size + 1, dtype=np.float32)
    text = f"""net (float[1] x) => (float[{codes.size}] y) {{
      b = DequantizeLinear<axis = 0>(codes, scale)
      y = Add(b, x)
    }}"""
    proto = model(text, {"codes": codes, "scale": scales if per_channel else scales[0]})
    out = check_fires(FloatBias(), proto, changed=1, feeds={"x": np.zeros(1, np.float32)})
    feeds = {"x": np.zeros(1, np.float32)}
    want = ReferenceEvaluator(proto).run(None, feeds)[0]
    np.testing.assert_array_equal(run_reference(proto, feeds)["y"], run_reference(out, feeds)["y"])
    np.testing.assert_array_equal(want, ReferenceEvaluator(out).run(None, feeds)[0])


def test_zero_points_of_int32_codes_are_subtracted():
    text = """net (float[2] x) => (float[2] y) {
      b = DequantizeLinear(codes, scale, zero)
      y = Add(b, x)
    }"""
    inits = {"codes": np.array([5, 9], np.int32), "scale": np.float32(0.5), "zero": np.int32(0)}
    check_fires(FloatBias(), model(text, inits), changed=1)


@pytest.mark.parametrize("scale", [np.float32(np.inf), np.float32(3e38)])
def test_values_without_a_float_stay(scale):
    text = """net (float[2] x) => (float[2] y) {
      b = DequantizeLinear(codes, scale)
      y = Add(b, x)
    }"""
    proto = model(text, {"codes": np.array([5, 9], np.int32), "scale": scale})
    check_stays(FloatBias(), proto, "too large" if np.isfinite(scale) else "not finite")


def test_computed_codes_stay():
    text = """net (int32[2] x) => (float[2] y) { y = DequantizeLinear(x, scale) }"""
    check_stays(FloatBias(), model(text, {"scale": np.float32(0.1)}), "computed")


def test_other_codes_are_no_bias():
    text = """net (float[2] x) => (float[2] y) {
      b = DequantizeLinear(codes, scale)
      y = Add(b, x)
    }"""
    proto = model(text, {"codes": np.array([5, 9], np.int8), "scale": np.float32(0.1)})
    assert check_stays(FloatBias(), proto)[-1].refused == []


def test_scales_that_do_not_fit_are_refused_not_broadcast():
    proto = model(CONV, arrays(np.array([1, 2, 3], np.int32), np.ones(3, np.float32)))
    proto.graph.initializer[1].CopyFrom(
        onnx.numpy_helper.from_array(np.ones(2, np.float32), "scale")
    )
    from qgraph import onnx_io
    from qgraph.context import Context

    report = FloatBias().run(onnx_io.load(proto), Context())
    assert report.changed == 0 and len(report.refused) == 1
