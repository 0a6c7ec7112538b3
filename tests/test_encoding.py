"""The quantization arithmetic against ONNX's reference evaluator and against its definition."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from qgraph.encoding import (
    INTEGERS,
    LARGEST_FLOAT,
    SMALLEST_SCALE,
    Encoding,
    Spec,
    dequantize,
    encode_array,
    encode_range,
    expand,
    quantize,
)

# What QuantizeLinear-21 and DequantizeLinear-21 take; int32 only dequantizes.
TYPES = {
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16,
    "uint16": TensorProto.UINT16,
}
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TINY = np.finfo(np.float32).tiny


def by_onnx(x, encoding):
    """Codes and floats that ONNX's reference evaluator makes of `x` with `encoding`."""
    kind = TYPES[encoding.dtype]
    numpy_type = INTEGERS[encoding.dtype][2]
    scale, zero = encoding.scale, encoding.zero_point.astype(numpy_type)
    attributes = {}
    blocks = [(i, b) for i, b in enumerate(encoding.block) if b > 1]
    if blocks:
        attributes = {"axis": blocks[0][0], "block_size": blocks[0][1]}
    elif encoding.axis is not None:
        attributes = {"axis": encoding.axis}
        scale, zero = scale.reshape(-1), zero.reshape(-1)
    dims = list(scale.shape)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [
            helper.make_tensor_value_info("q", kind, list(x.shape)),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, list(x.shape)),
        ],
        [
            helper.make_tensor("s", TensorProto.FLOAT, dims, scale.reshape(-1).tolist()),
            helper.make_tensor("z", kind, dims, zero.reshape(-1).astype(np.int64).tolist()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    codes, floats = ReferenceEvaluator(model).run(None, {"x": x})
    return codes.astype(np.int64), floats


def same_as_onnx(x, encoding):
    codes = quantize(x, encoding)
    want_codes, want_floats = by_onnx(x, encoding)
    assert codes.dtype == INTEGERS[encoding.dtype][2] and codes.shape == x.shape
    np.testing.assert_array_equal(codes.astype(np.int64), want_codes)
    np.testing.assert_array_equal(dequantize(codes, encoding), want_floats)


# -- codes and floats --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_per_tensor_is_onnx(dtype, data):
    low, high, _ = INTEGERS[dtype]
    values = data.draw(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
    scale = data.draw(st.floats(2.0**-10, 100, width=32))
    zero = data.draw(st.integers(low, high))
    encoding = Encoding(dtype, np.array(scale, np.float32), np.array(zero, np.int64))
    same_as_onnx(np.array(values, np.float32), encoding)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_per_channel_is_onnx(dtype, axis, symmetric):
    rng = np.random.default_rng(axis)
    x = (rng.standard_normal((3, 4, 5)) * np.logspace(-2, 2, 5)).astype(np.float32)
    same_as_onnx(x, encode_array(x, Spec(dtype, symmetric, axis=axis)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("block", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_per_block_is_onnx(dtype, axis, block, symmetric):
    x = np.random.default_rng(block).standard_normal((12, 24)).astype(np.float32)
    encoding = encode_array(x, Spec(dtype, symmetric, axis=axis, block=block))
    assert encoding.scale.shape == tuple(
        n // block if i == axis else n for i, n in enumerate(x.shape)
    )
    same_as_onnx(x, encoding)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_last_block_may_be_shorter(symmetric):
    x = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
    encoding = encode_array(x, Spec("int8", symmetric, axis=0, block=4))
    assert encoding.scale.shape == (3, 3)
    for index, rows in enumerate((slice(0, 4), slice(4, 8), slice(8, 10))):
        alone = encode_array(x[rows], Spec("int8", symmetric, axis=1))
        np.testing.assert_array_equal(encoding.scale[index], alone.scale[0])
        codes = quantize(x, encoding)[rows]
        np.testing.assert_array_equal(codes, quantize(x[rows], alone))


def test_ties_go_to_the_even_code():
    one = Encoding("int8", np.float32(1), np.int64(0))
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    np.testing.assert_array_equal(quantize(x, one), [-2, -2, 0, 0, 2, 2])
    same_as_onnx(x, one)
    # The zero point is added after rounding: an odd one must not turn ties around.
    odd = Encoding("uint8", np.array(1, np.float32), np.array(3, np.int64))
    np.testing.assert_array_equal(quantize(x, odd), [1, 1, 3, 3, 5, 5])
    same_as_onnx(x, odd)


@settings(max_examples=200, deadline=None)
@given(st.integers(-300, 300), st.floats(2.0**-20, 2.0**20, width=32))
def test_ties_at_any_scale_are_onnx(half_steps, scale):
    encoding = Encoding("int8", np.array(scale, np.float32), np.array(0, np.int64))
    same_as_onnx(np.array([half_steps * scale / 2], np.float32), encoding)


@pytest.mark.parametrize("dtype", list(INTEGERS))
def test_saturates_at_both_ends(dtype):
    low, high, _ = INTEGERS[dtype]
    encoding = Encoding(dtype, np.array(1, np.float32), np.array(0, np.int64))
    x = np.array([-3e38, -np.inf, 3e38, np.inf], np.float32)
    np.testing.assert_array_equal(quantize(x, encoding).astype(np.int64), [low, low, high, high])


def test_nan_has_no_code():
    encoding = Encoding("int8", np.array(1, np.float32), np.array(0, np.int64))
    with pytest.raises(ValueError, match="NaN has no code"):
        quantize(np.array([1, np.nan], np.float32), encoding)


def test_division_is_in_float32_like_onnx():
    # x / s is 2.5 + 4e-8 in float64, hence 3, but exactly the tie 2.5 in float32, hence 2.
    scale, x = np.float32(0.1), np.float32(0.25)
    assert float(x) / float(scale) != 2.5 == float(x / scale)
    same_as_onnx(np.array([x]), Encoding("int8", np.array(scale), np.array(0, np.int64)))


def test_empty_arrays():
    encoding = Encoding("uint8", np.array(1, np.float32), np.array(7, np.int64))
    empty = np.zeros((0, 3), np.float32)
    assert quantize(empty, encoding).shape == (0, 3)
    assert dequantize(quantize(empty, encoding), encoding).shape == (0, 3)
    assert encode_array(empty, Spec("int8")).scale == 1


# -- choosing scale and zero point -------------------------------------------------------------


@pytest.mark.parametrize("dtype", [name for name in INTEGERS if name != "int32"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
@settings(max_examples=100, deadline=None)
@given(a=FLOATS, b=FLOATS)
@example(a=0.0, b=0.0)
@example(a=5.0, b=6.0)
@example(a=-6.0, b=-5.0)
@example(a=1e-45, b=2e-45)
@example(a=-3.4e38, b=3.4e38)
@example(a=0.0, b=1e-38)
def test_a_range_is_covered_to_half_a_step_and_zero_is_exact(dtype, symmetric, narrow, a, b):
    low, high = min(a, b), max(a, b)
    spec = Spec(dtype, symmetric, narrow=narrow)
    encoding = encode_range(low, high, spec)
    first, last = spec.codes()
    assert encoding.scale.dtype == np.float32 and encoding.scale >= SMALLEST_SCALE
    assert first <= encoding.zero_point <= last
    zero = quantize(np.zeros(1, np.float32), encoding)
    assert dequantize(zero, encoding)[0] == 0
    if symmetric and first < 0:
        assert encoding.zero_point == 0
    # Computed in float64, since steps times codes may overflow float32 at its upper end.
    scale, zero_point = float(encoding.scale), int(encoding.zero_point)
    # The scale itself is rounded to float32, and narrowed where the last code would be infinite.
    half = 0.5 if (last - first) * scale < LARGEST_FLOAT else 1.0
    step = scale * (half + (last - first) * 2.0**-24)
    assert (first - zero_point) * scale <= min(low, 0.0) + step
    assert (last - zero_point) * scale >= max(high, 0.0) - step


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30),
    st.sampled_from(sorted(TYPES)),
    st.booleans(),
)
def test_a_round_trip_is_off_by_half_a_step_at_most(values, dtype, symmetric):
    x = np.array(values, np.float32)
    encoding = encode_array(x, Spec(dtype, symmetric))
    back = dequantize(quantize(x, encoding), encoding)
    error = np.abs(back.astype(np.float64) - x)
    # Asymmetric: the zero point is rounded, which moves both ends by up to half a step.
    worst = 0.5 if symmetric else 1.0
    assert error.max() <= worst * float(encoding.scale) * (1 + 1e-4)
    again = dequantize(quantize(back, encoding), encoding)
    np.testing.assert_array_equal(again, back)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=30), st.booleans())
def test_order_is_kept(values, symmetric):
    x = np.sort(np.array(values, np.float32))
    codes = quantize(x, encode_array(x, Spec("int8", symmetric))).astype(np.int64)
    assert (np.diff(codes) >= 0).all()


def test_narrow_leaves_out_the_lowest_code():
    x = np.array([-1.0, 1.0], np.float32)
    narrow = quantize(x, encode_array(x, Spec("int8", True, narrow=True)))
    np.testing.assert_array_equal(narrow, [-127, 127])
    assert Spec("int8", narrow=True).codes() == (-127, 127)
    assert Spec("int4").codes() == (-8, 7)


def test_symmetric_unsigned_has_its_zero_in_the_middle():
    encoding = encode_range(-1.0, 0.5, Spec("uint8", symmetric=True))
    assert encoding.zero_point == 128
    assert encoding.scale == np.float32(1 / 127)


def test_relu_range_has_zero_point_zero_and_a_positive_range_holds_zero():
    for low in (0.0, 2.0):
        encoding = encode_range(low, 6.0, Spec("uint8", symmetric=False))
        assert encoding.zero_point == 0
        assert encoding.scale == np.float32(6.0 / 255)


def test_an_all_zero_tensor_keeps_scale_one_and_exact_zeros():
    x = np.zeros((2, 3), np.float32)
    for spec in (Spec("int8"), Spec("uint8", False), Spec("int8", axis=0), Spec("int4", axis=1)):
        encoding = encode_array(x, spec)
        assert (encoding.scale == 1).all()
        assert (dequantize(quantize(x, encoding), encoding) == 0).all()


def test_one_dead_channel_does_not_touch_the_others():
    x = np.array([[0, 0, 0], [1, -2, 3]], np.float32)
    encoding = encode_array(x, Spec("int8", axis=0, narrow=True))
    np.testing.assert_array_equal(encoding.scale.reshape(-1), np.float32([1, 3 / 127]))


@pytest.mark.parametrize("size", [1e-45, 1e-40, float(TINY), 1e-37])
@pytest.mark.parametrize("symmetric", [True, False])
def test_denormal_ranges_have_a_normal_scale(size, symmetric):
    encoding = encode_range(-size, size, Spec("int8", symmetric))
    assert encoding.scale >= TINY
    x = np.array([-size, 0, size], np.float32)
    back = dequantize(quantize(x, encoding), encoding)
    assert np.isfinite(back).all() and back[1] == 0
    assert np.abs(back - x).max() <= encoding.scale


def test_a_huge_outlier_stays_finite_and_the_rest_becomes_zero():
    x = np.array([3e38, -3e38, 1.0, -1.0], np.float32)
    for spec in (Spec("int8"), Spec("uint8", False), Spec("int16")):
        encoding = encode_array(x, spec)
        back = dequantize(quantize(x, encoding), encoding)
        assert np.isfinite(encoding.scale) and np.isfinite(back[2:]).all()
        assert (back[2:] == 0).all()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("symmetric", [False, True])
@settings(deadline=None)
@given(st.floats(2.0**120, LARGEST_FLOAT), st.floats(-LARGEST_FLOAT, LARGEST_FLOAT))
def test_the_ends_of_float32s_range_stay_finite(dtype, symmetric, a, b):
    spec = Spec(dtype, symmetric=symmetric)
    encoding = encode_range(min(a, b), max(a, b), spec)
    with np.errstate(over="raise"):
        back = dequantize(np.array(spec.codes(), INTEGERS[dtype][2]), encoding)
    assert np.isfinite(back).all()


@pytest.mark.parametrize("bounds", [(np.nan, 1), (0, np.nan), (0, np.inf), (-np.inf, 0)])
def test_ranges_must_be_finite(bounds):
    with pytest.raises(ValueError, match="not finite"):
        encode_range(*bounds, Spec())


def test_ranges_must_be_in_order():
    with pytest.raises(ValueError, match="low > high"):
        encode_range(1.0, -1.0, Spec())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [None, 0])
def test_constants_must_be_finite(bad, axis):
    with pytest.raises(ValueError, match="not finite"):
        encode_array(np.array([1.0, bad], np.float32), Spec(axis=axis))


@pytest.mark.parametrize("axis", [2, -3])
def test_axis_out_of_range(axis):
    with pytest.raises(ValueError, match=f"axis {axis} is out of range"):
        encode_array(np.zeros((2, 2), np.float32), Spec(axis=axis))


def test_negative_axes_count_from_the_end():
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_array_equal(
        encode_array(x, Spec(axis=-1)).scale, encode_array(x, Spec(axis=1)).scale
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 1))
def test_expand_repeats_each_scale_over_its_block(rows, columns, block, axis):
    assume(block > 1)
    shape = (rows, columns)
    counts = tuple(-(-n // block) if i == axis else n for i, n in enumerate(shape))
    values = np.arange(np.prod(counts), dtype=np.float32).reshape(counts)
    full = expand(values, tuple(block if i == axis else 1 for i in range(2)), shape)
    assert full.shape == shape
    for row in range(rows):
        for column in range(columns):
            index = (row // block, column) if axis == 0 else (row, column // block)
            assert full[row, column] == values[index]


def test_axis_of_an_encoding():
    x = np.ones((4, 6), np.float32)
    assert encode_array(x, Spec()).axis is None
    assert encode_array(x, Spec(axis=1)).axis == 1
    assert encode_array(x, Spec(axis=0, block=2)).axis == 0
    assert encode_array(x[:1], Spec(axis=0)).axis == 0
    assert encode_array(x[:, :1], Spec(axis=1)).axis == 1
    with pytest.raises(ValueError, match="no single axis"):
        _ = Encoding("int8", np.ones((2, 3), np.float32), np.zeros((2, 3), np.int64), (2, 2)).axis


def test_json_form_is_plain():
    encoding = encode_array(np.ones((2, 2), np.float32), Spec(axis=0))
    assert encoding.to_json() == {
        "dtype": "int8",
        "scale": [[float(np.float32(1 / 127))]] * 2,
        "zero_point": [[0], [0]],
        "block": [1, 0],
    }


def test_int4_codes_come_in_their_own_type():
    codes = quantize(
        np.array([-9, 7.2], np.float32),
        Encoding("int4", np.array(1, np.float32), np.array(0, np.int64)),
    )
    assert codes.dtype == ml_dtypes.int4 and codes.astype(int).tolist() == [-8, 7]
