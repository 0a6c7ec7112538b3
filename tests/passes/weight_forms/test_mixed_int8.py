"""Outlier channels in float beside int8, with each of the kernels."""

import numpy as np
import pytest
from harness import ops
from weightforms import RTOL, check_form, matmul, refusal, run, write

from qgraph import onnx_io
from qgraph.passes.weight_forms.mixed_int8 import mixed_int8
from qgraph.passes.weights.results import MixedInt8

KERNELS = {"dequantize": "DequantizeLinear", "nbits": "MatMulNBits", "dynamic": "MatMulInteger"}


def weight_of(shape=(70, 9), outliers=(3, 17, 18, 69), seed=0):
    rng = np.random.default_rng(seed)
    rows = np.array(outliers, np.int64)
    regular = np.setdiff1d(np.arange(shape[0]), rows)
    return MixedInt8(
        regular=regular,
        codes=rng.integers(-127, 128, (len(regular), shape[1])).astype(np.int8),
        scale=rng.uniform(0.001, 0.01, shape[1]).astype(np.float32),
        outliers=rows,
        weight=rng.standard_normal((len(rows), shape[1])).astype(np.float32),
    )


@pytest.mark.parametrize("kernel", ["dequantize", "nbits"])
@pytest.mark.parametrize("outliers", [(), (3, 17, 18, 69), tuple(range(70))])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_products(kernel, outliers, dtype):
    weight = weight_of(outliers=outliers)
    out = check_form(mixed_int8, weight, dtype=dtype, kernel=kernel)
    found = ops(out)
    assert (KERNELS[kernel] in found) == bool(len(weight.regular))
    assert found.count("Gather") == (2 if 0 < len(outliers) < 70 else 0)


@pytest.mark.parametrize("outliers", [(), (3, 17, 18, 69)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_of_the_data_in_int8(outliers, dtype):
    weight = weight_of(outliers=outliers)
    out = onnx_io.to_proto(write(mixed_int8, weight, matmul((70, 9), dtype), kernel="dynamic"))
    assert "MatMulInteger" in ops(out)
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((6, 70)) * np.exp(rng.standard_normal((6, 1)))).astype(dtype)
    x[2] = 0
    part = x[:, weight.regular].astype(np.float32)
    step = np.maximum(np.abs(part).max(axis=1, keepdims=True) / np.float32(127), 2.0**-126)
    codes = np.rint(part / step).astype(np.float64)
    want = codes @ weight.codes * step.astype(np.float64) * weight.scale
    want += x[:, weight.outliers].astype(np.float64) @ weight.weight
    for optimised in (False, True):
        error = np.abs(run(out, x, optimised) - want).max()
        assert error <= RTOL[dtype] * np.abs(want).max()
    # Of all there is to lose, half a step of each row is what it costs.
    exact = x.astype(np.float64) @ weight.dequantize()
    rows = np.abs(weight.codes.astype(np.float64) * weight.scale).sum(axis=0)
    assert (np.abs(want - exact) <= step / 2 * rows + 1e-6).all()


def test_accuracy_level_goes_to_matmul_nbits():
    proto = matmul((70, 9))
    out = onnx_io.to_proto(write(mixed_int8, weight_of(), proto, kernel="nbits", accuracy_level=4))
    [node] = [n for n in out.graph.node if n.op_type == "MatMulNBits"]
    assert [a.i for a in node.attribute if a.name == "accuracy_level"] == [4]


def test_refusals():
    weight = weight_of()
    assert "opset 18" in refusal(mixed_int8, weight, matmul((70, 9), opset=17), kernel="dynamic")
    assert "the result [70, 9]" in refusal(mixed_int8, weight, matmul((71, 9)))
    vector = matmul((70, 9))
    del vector.graph.input[0].type.tensor_type.shape.dim[0]
    del vector.graph.output[0].type.tensor_type.shape.dim[0]
    assert "one axis" in refusal(mixed_int8, weight, vector)
