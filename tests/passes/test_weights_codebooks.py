import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qgraph.errors import UsageError
from qgraph.passes.weights import matrix_quantizer
from qgraph.passes.weights.codebooks import FP4, NF4, TABLES, fp4, nf4, table_rounding
from qgraph.passes.weights.loss import relative_loss

KINDS = {"fp4": 0, "nf4": 1}
each_table = pytest.mark.parametrize("table", list(TABLES))


def normal(rows, columns, seed):
    return (np.random.default_rng(seed).standard_normal((rows, columns)) * 0.03).astype("f4")


def packed(codes):
    flat = codes.T.reshape(-1)
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return (flat[0::2] << 4 | flat[1::2]).astype(np.uint8)


def run_bnb4(x, result, kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    rows, columns = result.codes.shape
    node = helper.make_node(
        "MatMulBnb4",
        ["x", "b", "absmax"],
        ["y"],
        domain="com.microsoft",
        K=rows,
        N=columns,
        block_size=result.block,
        quant_type=kind,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), columns])],
        [
            onnx.numpy_helper.from_array(packed(result.codes), "b"),
            onnx.numpy_helper.from_array(result.absmax, "absmax"),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x})[0]


@each_table
@pytest.mark.parametrize(("rows", "columns", "block"), [(64, 6, 64), (96, 5, 64), (192, 3, 32)])
@pytest.mark.parametrize("double", [False, True])
def test_onnxruntime_computes_the_same_weight(table, rows, columns, block, double):
    weight = normal(rows, columns, rows)
    result = table_rounding(weight, table=table, block=block, double=double)
    computed = run_bnb4(np.eye(rows, dtype=np.float32), result, KINDS[table])
    np.testing.assert_allclose(computed, result.dequantize(), rtol=1e-6, atol=1e-9)


@each_table
@pytest.mark.parametrize("block", [16, 64, 256])
def test_codes_are_those_of_onnxruntimes_quantizer(table, block):
    pybind = pytest.importorskip("onnxruntime.capi._pybind_state")
    weight = normal(96, 10, block)
    theirs = np.zeros(96 * 10 // 2, np.uint8)
    absmax = np.zeros(-(-960 // block), np.float32)
    transposed = np.ascontiguousarray(weight.T)
    pybind.quantize_matmul_bnb4(theirs, transposed, absmax, block, KINDS[table], 10, 96)
    result = table_rounding(weight, table=table, block=block)
    np.testing.assert_array_equal(result.absmax, absmax)
    # FP4's code 8 is a negative zero, which is not kept apart here.
    pairs = np.stack([theirs >> 4, theirs & 15], axis=1).reshape(-1)
    pairs = np.where((pairs == 8) & (table == "fp4"), 0, pairs)
    np.testing.assert_array_equal(result.codes.T.reshape(-1), pairs)


@each_table
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_each_weight_gets_the_nearest_level_of_its_block(table, rows, columns, block, seed):
    weight = normal(rows, columns, seed)
    result = table_rounding(weight, table=table, block=block)
    flat, back = weight.T.reshape(-1), result.dequantize().T.reshape(-1)
    for start in range(0, flat.size, block):
        part = flat[start : start + block]
        levels = TABLES[table].astype(np.float64) * np.abs(part).max()
        nearest = np.abs(part[:, None] - levels).min(axis=1)
        found = np.abs(part - back[start : start + block])
        np.testing.assert_allclose(found, nearest, rtol=1e-4, atol=1e-8)


def test_nf4_levels_are_quantiles_of_the_normal_distribution():
    # As appendix E describes them: 8 quantiles below and 9 above, sharing 0, scaled to [-1, 1].
    from statistics import NormalDist

    offset = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    want = np.sort(np.array([*above, 0.0, *below])) / max(above)
    np.testing.assert_allclose(NF4, want, atol=2e-6)


def test_fp4_levels_are_floats_with_two_bits_of_exponent():
    want = [0.0625, 2, 3, 4, 6, 8, 12]
    np.testing.assert_allclose(np.unique(FP4[FP4 > 0]) * 12, want, rtol=1e-6)
    np.testing.assert_array_equal(FP4[8:], -FP4[:8])


def test_double_quantization_by_its_definition():
    weight = normal(64, 600, 1) * np.linspace(0.1, 3, 600, dtype=np.float32)
    plain, double = table_rounding(weight), table_rounding(weight, double=True)
    assert plain.bits() == 4.5 and double.bits() == 4 + (8 + 32 / 256) / 64
    mean = plain.absmax.mean()
    for start in (0, 256, 512):
        part = plain.absmax[start : start + 256] - mean
        scale = np.abs(part).max() / 448
        back = (part / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale + mean
        np.testing.assert_allclose(double.absmax[start : start + 256], back, rtol=1e-5)
    assert plain.loss < double.loss < 1.1 * plain.loss


def test_nf4_beats_fp4_and_evenly_spaced_levels_on_normal_weights():
    weight = normal(256, 32, 2)
    assert nf4(weight).loss < 0.8 * fp4(weight).loss
    even = np.abs(weight.T.reshape(-1, 64)).max(axis=1, keepdims=True) / 7
    steps = np.rint(weight.T.reshape(-1, 64) / even) * even
    assert nf4(weight).loss < relative_loss(weight.T.reshape(-1, 64), steps)


@each_table
def test_zeros_stay_zero(table):
    weight = normal(64, 3, 3)
    weight[:, 1] = 0
    weight[5] = 0
    for double in (False, True):
        back = table_rounding(weight, table=table, double=double).dequantize()
        assert not back[weight == 0].any()


def test_refusals_and_registration():
    with pytest.raises(UsageError, match="nf5"):
        table_rounding(normal(4, 4, 0), table="nf5")
    with pytest.raises(ValueError, match="not finite"):
        nf4(np.array([[np.inf]], np.float32))
    assert matrix_quantizer("nf4") is nf4 and matrix_quantizer("fp4") is fp4
    with pytest.raises(UsageError, match="nf4"):
        matrix_quantizer("nf5")
