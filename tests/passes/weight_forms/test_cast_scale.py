"""Codes with whole or float zero points in elementwise operators."""

import numpy as np
import pytest
from harness import ops
from onnx.reference import ReferenceEvaluator
from weightforms import check_form, matmul, refusal, run, simulated, write

from qgraph import onnx_io
from qgraph.encoding import Spec, encode_array, quantize
from qgraph.facts import QuantizedWeight
from qgraph.passes.weight_forms.cast_scale import cast_scale
from qgraph.passes.weight_forms.matmul_nbits import matmul_nbits
from qgraph.passes.weights.hqq import hqq_float
from qgraph.passes.weights.results import FloatZero


def weight_of(dtype="uint4", shape=(72, 9), block=32, axis=0):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return hqq_float(values, Spec(dtype, False, axis=axis, block=block))


@pytest.mark.parametrize("dtype", ["uint2", "uint3", "uint4", "uint8"])
@pytest.mark.parametrize(("block", "axis"), [(32, 0), (24, 0), (128, 0), (0, 1)])
def test_products(dtype, block, axis):
    weight = weight_of(dtype, block=block, axis=axis)
    out = check_form(cast_scale, weight)
    assert ("Slice" in ops(out)) == (block in (32, 128))
    if dtype != "uint8" and block != 24:
        check_form(matmul_nbits, weight)


@pytest.mark.parametrize(
    "dtype", ["int2", "uint2", "int3", "uint3", "int4", "uint4", "int8", "uint8"]
)
@pytest.mark.parametrize(("block", "axis"), [(32, 0), (0, 1), (0, None)])
def test_whole_zero_points(dtype, block, axis):
    values = np.random.default_rng(0).standard_normal((72, 9)).astype(np.float32)
    spec = Spec(dtype, not dtype.startswith("u"), axis=axis, block=block)
    encoding = encode_array(values, spec)
    weight = QuantizedWeight(quantize(values, encoding), encoding, 0.0)
    out = check_form(cast_scale, weight)
    assert ("Sub" in ops(out)) == dtype.startswith("u")


def test_half_precision():
    check_form(cast_scale, weight_of(), dtype=np.float16)


def test_the_weight_is_the_simulation_bit_for_bit():
    weight = weight_of()
    out = onnx_io.to_proto(write(cast_scale, weight, matmul((72, 9))))
    eye = np.eye(72, dtype=np.float32)
    np.testing.assert_array_equal(run(out, eye), simulated(weight))
    np.testing.assert_array_equal(ReferenceEvaluator(out).run(None, {"x": eye})[0], run(out, eye))


def test_refusals():
    assert "opset 21" in refusal(cast_scale, weight_of(), matmul((72, 9), opset=20))
    scale = np.ones((72, 3), np.float32)
    wide = FloatZero(
        np.zeros((72, 9), np.uint8), np.ones((1, 9), "f"), np.ones((1, 9), "f"), (0, 1), 9
    )
    assert "9 bits" in refusal(cast_scale, wide, matmul((72, 9)))
    columns = FloatZero(np.zeros((72, 9), np.uint8), scale, scale, (1, 3), 4)
    assert "do not lie along the rows" in refusal(cast_scale, columns, matmul((72, 9)))
