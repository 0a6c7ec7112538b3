"""Encodings in float8e4m3fn against ONNX's reference evaluator and onnxruntime's Cast."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from qgraph.encoding import Encoding, Spec, dequantize, encode_array, encode_range, quantize

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SPEC = Spec("float8e4m3fn")
TYPE = ml_dtypes.float8_e4m3fn
# Every number of the type, and the middles between neighbours, where rounding is to even.
CODES = np.arange(256, dtype=np.uint8).view(TYPE).astype(np.float32)
CODES = np.unique(CODES[np.isfinite(CODES)])
MIDDLES = (CODES[1:] + CODES[:-1]) / 2


def graph(nodes, inputs=("x",), kind=TensorProto.FLOAT):
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["N"])],
        [helper.make_tensor_value_info("y", kind, ["N"])],
        [helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)],
    )
    made.input.extend(helper.make_tensor_value_info(n, kind, []) for n in inputs[1:])
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


QDQ = graph(
    [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ],
    ("x", "s"),
)
EVALUATOR = ReferenceEvaluator(QDQ)


@settings(max_examples=300, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=20), st.floats(2.0**-60, 2.0**60, width=32))
@example([464.0, -464.0, 480.0, 1e30, -3.4e38], 1.0)
@example([2.0**-10, 3 * 2.0**-10, -(2.0**-10), 2.0**-11, 0.0, -0.0], 1.0)
def test_codes_are_those_of_onnx(values, scale):
    x, scale = np.array(values, np.float32), np.float32(scale)
    encoding = Encoding("float8e4m3fn", np.array(scale), np.array(0, np.int64))
    codes = quantize(x, encoding)
    assert codes.dtype == TYPE
    with np.errstate(over="ignore"):
        (want,) = EVALUATOR.run(None, {"x": x, "s": scale})
    np.testing.assert_array_equal(dequantize(codes, encoding), want)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(TensorProto.FLOAT, np.float32), (TensorProto.FLOAT16, np.float16)]
)
def test_codes_of_scale_1_are_those_of_a_cast(kind, dtype):
    """So the engine's saturating Cast can stand for QuantizeLinear: all of float16, and ties."""
    to = [TensorProto.FLOAT8E4M3FN, kind]
    names = ["x", "c", "y"]
    nodes = [helper.make_node("Cast", [names[i]], [names[i + 1]], to=to[i]) for i in (0, 1)]
    model = graph(nodes, kind=kind)
    del model.graph.initializer[:]
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    x = np.concatenate([halves[np.isfinite(halves)].astype(np.float32), CODES, MIDDLES])
    x = x.astype(dtype)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    encoding = Encoding("float8e4m3fn", np.array(1, np.float32), np.array(0, np.int64))
    want = dequantize(quantize(x, encoding), encoding)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0].astype(np.float32), want)


def test_every_number_of_the_type_stays_and_ties_go_to_even():
    encoding = Encoding("float8e4m3fn", np.array(1, np.float32), np.array(0, np.int64))
    np.testing.assert_array_equal(dequantize(quantize(CODES, encoding), encoding), CODES)
    codes = quantize(MIDDLES, encoding).view(np.uint8)
    assert not (codes & 1).any()


@settings(max_examples=100, deadline=None)
@given(FLOATS, FLOATS)
@example(0.0, 0.0)
@example(-3.4028234663852886e38, 1.0)
@example(0.0, 1e-45)
@example(-0.001, 0.02)
def test_a_range_is_mapped_to_all_codes(a, b):
    low, high = min(a, b), max(a, b)
    encoding = encode_range(low, high, SPEC)
    bound = max(abs(min(low, 0.0)), max(high, 0.0))
    # In float16 the scale has all its digits.
    smallest = float(np.finfo(np.float16).tiny)
    assert encoding.zero_point == 0 and encoding.scale >= smallest
    ends = dequantize(quantize(np.array([low, high], np.float32), encoding), encoding)
    assert np.isfinite(ends).all()
    if bound > 448 * smallest:
        assert np.abs(ends).max() == pytest.approx(bound, rel=1e-6)
    elif bound > 2.0**-20:  # 2^-6 of the smallest scale: here codes begin to lose digits
        assert np.abs(ends).max() == pytest.approx(bound, rel=2.0**-4)


def test_channels_have_scales_of_their_own():
    weight = np.array([[1.0, -448.0], [0.5, 44.8]], np.float32)
    encoding = encode_array(weight, Spec("float8e4m3fn", axis=1))
    np.testing.assert_allclose(encoding.scale, [[1 / 448, 1]], rtol=1e-6)
    assert encoding.block == (0, 1) and encoding.axis == 1
    back = dequantize(quantize(weight, encoding), encoding)
    assert np.abs(back / weight - 1).max() <= 2.0**-4


def test_nan_has_no_code():
    encoding = encode_range(-1, 1, SPEC)
    with pytest.raises(ValueError, match="NaN"):
        quantize(np.array([np.nan], np.float32), encoding)
    onnx.checker.check_model(QDQ)
