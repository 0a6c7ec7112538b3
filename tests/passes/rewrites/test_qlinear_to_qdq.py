"""Operators on codes as Q/DQ: at most one code from onnxruntime's integer kernels."""

import numpy as np
import onnx
import pytest
from harness import apply, check_stays, ops, run_reference
from onnx import helper

from qgraph.passes.rewrites.float_bias import FloatBias
from qgraph.passes.rewrites.qlinear_to_qdq import QLinearToQDQ

MS = "com.microsoft"
TYPES = {np.dtype(np.uint8): 2, np.dtype(np.int8): 3, np.dtype(np.float32): 1}


def net(op, inputs, arrays, shapes, *, domain=MS, result=np.uint8, dtype=np.uint8, rank=4, **attrs):
    """A model of one node; `shapes` are those of its dynamic inputs, codes of `dtype`."""
    node = helper.make_node(op, inputs, ["y"], "node", domain=domain, **attrs)
    types = {"condition": onnx.TensorProto.BOOL}
    fed = [
        helper.make_tensor_value_info(n, types.get(n, TYPES[np.dtype(dtype)]), shape)
        for n, shape in shapes.items()
    ]
    out = helper.make_tensor_value_info("y", TYPES[np.dtype(result)], [None] * rank)
    constants = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()]
    graph = helper.make_graph([node], "net", fed, [out], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def feeds_for(proto, seed):
    rng, feeds = np.random.default_rng(seed), {}
    for value in proto.graph.input:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype == bool:
            feeds[value.name] = rng.integers(0, 2, shape).astype(bool)
        else:
            limits = np.iinfo(dtype)
            feeds[value.name] = rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
    return feeds


def check(proto, wanted_ops):
    out, reports, _ = apply(QLinearToQDQ(), proto)
    assert reports[-1].changed == 1, reports[-1].refused
    assert ops(out) == wanted_ops
    for seed in range(3):
        feeds = feeds_for(proto, seed)
        want, have = run_reference(proto, feeds)["y"], run_reference(out, feeds)["y"]
        assert want.shape == have.shape and want.dtype == have.dtype
        assert np.ptp(want.astype(np.float64)) > 4, "a test whose codes are all the same"
        if want.dtype.kind == "f":
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-4 * np.abs(want).max())
        else:
            off = np.abs(want.astype(int) - have.astype(int))
            assert off.max() <= 1 and (off > 0).mean() < 0.05
    assert apply(QLinearToQDQ(), out)[1][-1].changed == 0
    return out


def scalars(dtype, **scales):
    """x=(scale, zero) gives constants x_s and x_z."""
    found = {}
    for name, (scale, zero) in scales.items():
        found[f"{name}_s"], found[f"{name}_z"] = np.float32(scale), np.asarray(zero, dtype)
    return found


both = pytest.mark.parametrize("dtype", [np.uint8, np.int8])


@both
@pytest.mark.parametrize(
    ("op", "plain", "out"), [("QLinearAdd", "Add", 0.05), ("QLinearMul", "Mul", 0.04)]
)
def test_two_operands(op, plain, out, dtype):
    arrays = scalars(dtype, a=(0.02, 7), b=(0.03, 100), y=(out, 50))
    proto = net(
        op, ["a", "a_s", "a_z", "b", "b_s", "b_z", "y_s", "y_z"], arrays,
        {"a": [2, 3, 4], "b": [3, 1]}, result=dtype, dtype=dtype, rank=3,
    )  # fmt: skip
    check(proto, ["DequantizeLinear", "DequantizeLinear", plain, "QuantizeLinear"])


@both
@pytest.mark.parametrize(
    ("op", "plain", "attrs", "y"),
    [
        ("QLinearSigmoid", "Sigmoid", {}, (1 / 256, 0)),
        ("QLinearLeakyRelu", "LeakyRelu", {"alpha": 0.1}, (0.03, 20)),
        ("QLinearGlobalAveragePool", "GlobalAveragePool", {}, (0.01, 50)),
        ("QLinearAveragePool", "AveragePool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, (0.02, 60)),
        ("QLinearSoftmax", "Softmax", {"axis": -1, "opset": 13}, (1 / 256, 0)),
    ],
)  # fmt: skip
def test_one_operand(op, plain, attrs, y, dtype):
    zero = y[1] if dtype is np.uint8 else y[1] - 128
    arrays = scalars(dtype, x=(0.03, 90 if dtype is np.uint8 else -38), y=(y[0], zero))
    proto = net(
        op, ["x", "x_s", "x_z", "y_s", "y_z"], arrays, {"x": [2, 3, 4, 6]},
        result=dtype, dtype=dtype, **attrs,
    )  # fmt: skip
    check(proto, ["DequantizeLinear", plain, "QuantizeLinear"])


def test_concat():
    arrays = scalars(np.uint8, a=(0.02, 7), b=(0.03, 100), y=(0.03, 50))
    proto = net(
        "QLinearConcat", ["y_s", "y_z", "a", "a_s", "a_z", "b", "b_s", "b_z"], arrays,
        {"a": [2, 3], "b": [2, 4]}, rank=2, axis=1,
    )  # fmt: skip
    check(proto, ["DequantizeLinear", "DequantizeLinear", "Concat", "QuantizeLinear"])


def test_where():
    arrays = scalars(np.uint8, a=(0.02, 7), b=(0.03, 100), y=(0.03, 50))
    proto = net(
        "QLinearWhere", ["condition", "a", "a_s", "a_z", "b", "b_s", "b_z", "y_s", "y_z"], arrays,
        {"condition": [2, 3], "a": [2, 3], "b": [2, 3]}, rank=2,
    )  # fmt: skip
    check(proto, ["DequantizeLinear", "DequantizeLinear", "Where", "QuantizeLinear"])


def conv_arrays(channels, per_channel, dtype=np.uint8, weight=np.int8, bias=True):
    rng = np.random.default_rng(0)
    arrays = scalars(dtype, x=(0.02, 110), y=(0.15, 100))
    arrays["w"] = rng.integers(-120, 120, (channels, 3, 3, 3)).astype(weight)
    arrays["w_s"] = (rng.uniform(0.005, 0.02, channels) if per_channel else np.array(0.01)).astype(
        np.float32
    )
    arrays["w_z"] = np.zeros(channels if per_channel else (), weight)
    inputs = ["x", "x_s", "x_z", "w", "w_s", "w_z", "y_s", "y_z"]
    if bias:
        arrays["b"] = rng.integers(-9000, 9000, channels).astype(np.int32)
        inputs.append("b")
    return arrays, inputs


@pytest.mark.parametrize("domain", ["", MS])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions(domain, per_channel, bias):
    arrays, inputs = conv_arrays(5, per_channel, bias=bias)
    proto = net(
        "QLinearConv", inputs, arrays, {"x": [1, 3, 8, 8]}, domain=domain,
        kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2],
    )  # fmt: skip
    out = check(proto, ["DequantizeLinear"] * (2 + bias) + ["Conv", "QuantizeLinear"])
    if bias:
        plain, _, _ = apply(FloatBias(), out)
        assert ops(plain).count("DequantizeLinear") == 2


@pytest.mark.parametrize("columns", [False, True])
def test_matrix_products(columns):
    rng = np.random.default_rng(0)
    arrays = scalars(np.uint8, a=(0.02, 110), y=(0.3, 100))
    arrays |= {
        "b": rng.integers(-120, 120, (16, 6)).astype(np.int8),
        "b_s": rng.uniform(0.01, 0.03, 6).astype(np.float32) if columns else np.float32(0.02),
        "b_z": np.zeros(6 if columns else (), np.int8),
    }
    inputs = ["a", "a_s", "a_z", "b", "b_s", "b_z", "y_s", "y_z"]
    proto = net("QLinearMatMul", inputs, arrays, {"a": [5, 16]}, domain="", rank=2)
    check(proto, ["DequantizeLinear", "DequantizeLinear", "MatMul", "QuantizeLinear"])


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("turned", "columns", "alpha"), [(0, True, 1.0), (1, True, 0.5), (1, False, 1.0)]
)
def test_gemm(integers, bias, turned, columns, alpha):
    rng = np.random.default_rng(0)
    arrays = scalars(np.uint8, a=(0.02, 110))
    arrays |= {
        "b": rng.integers(-120, 120, (6, 16) if turned else (16, 6)).astype(np.int8),
        "b_s": rng.uniform(0.01, 0.03, 6).astype(np.float32) if columns else np.float32(0.02),
        "b_z": np.zeros(6 if columns else (), np.int8),
    }
    inputs = ["a", "a_s", "a_z", "b", "b_s", "b_z", ""]
    if bias:
        arrays["c"] = rng.integers(-9000, 9000, 6).astype(np.int32)
        inputs[6] = "c"
    if integers:
        arrays |= scalars(np.uint8, y=(0.3, 100))
        inputs += ["y_s", "y_z"]
    proto = net(
        "QGemm", inputs, arrays, {"a": [5, 16]}, rank=2, transB=turned, alpha=alpha,
        result=np.uint8 if integers else np.float32,
    )  # fmt: skip
    wanted = ["DequantizeLinear"] * (2 + bias) + ["Gemm"] + ["QuantizeLinear"] * integers
    check(proto, wanted)


def test_scales_of_one_element_in_an_axis_become_scalars():
    arrays = {"x_s": np.array([0.03], np.float32), "x_z": np.array([9], np.uint8)}
    arrays |= {"y_s": np.array([1 / 256], np.float32), "y_z": np.array([0], np.uint8)}
    proto = net("QLinearSigmoid", ["x", "x_s", "x_z", "y_s", "y_z"], arrays, {"x": [2, 3]}, rank=2)
    check(proto, ["DequantizeLinear", "Sigmoid", "QuantizeLinear"])


def unary(**attrs):
    arrays = scalars(np.uint8, x=(0.03, 90), y=(0.01, 0))
    return net(
        attrs.pop("op"), ["x", "x_s", "x_z", "y_s", "y_z"][: attrs.pop("count", 5)], arrays,
        {"x": [2, 3, 4, 6]}, **attrs,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (unary(op="QLinearGlobalAveragePool", channels_last=1), "channels come last"),
        (unary(op="QLinearSoftmax", axis=1, opset=12), "opset 12"),
        (unary(op="QLinearSigmoid", count=3), "input 3 is missing"),
        (unary(op="QLinearConcat", count=4), "triples"),
        (unary(op="QLinearConcat"), "axis is missing"),
        (unary(op="QLinearAveragePool"), "kernel_shape is missing"),
    ],
)
def test_what_stays(proto, reason):
    [report] = check_stays(QLinearToQDQ(), proto, reason)
    assert report.changed == 0


def test_nothing_is_left_of_a_refused_rewrite():
    arrays, inputs = conv_arrays(5, True)
    arrays["b"] = np.zeros(4, np.int32)
    proto = net("QLinearConv", inputs, arrays, {"x": [1, 3, 8, 8]}, kernel_shape=[3, 3])
    out, reports, _ = apply(QLinearToQDQ(), proto)
    assert ops(out) == ["QLinearConv"] and "bias" in reports[-1].refused[0].reason
    assert {t.name for t in out.graph.initializer} == set(arrays)
