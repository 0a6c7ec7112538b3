"""Float zero points in plain operators."""

import numpy as np
import pytest
from harness import ops
from onnx.reference import ReferenceEvaluator
from weightforms import check_form, matmul, refusal, run, simulated, write

from qgraph import onnx_io
from qgraph.encoding import Spec
from qgraph.passes.weight_forms.float_zero import float_zero
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
    out = check_form(float_zero, weight)
    assert ("Slice" in ops(out)) == (block in (32, 128))
    if dtype != "uint8" and block != 24:
        check_form(matmul_nbits, weight)


def test_half_precision():
    check_form(float_zero, weight_of(), dtype=np.float16)


def test_the_weight_is_the_simulation_bit_for_bit():
    weight = weight_of()
    out = onnx_io.to_proto(write(float_zero, weight, matmul((72, 9))))
    eye = np.eye(72, dtype=np.float32)
    np.testing.assert_array_equal(run(out, eye), simulated(weight))
    np.testing.assert_array_equal(ReferenceEvaluator(out).run(None, {"x": eye})[0], run(out, eye))


def test_refusals():
    assert "opset 21" in refusal(float_zero, weight_of(), matmul((72, 9), opset=20))
    scale = np.ones((72, 3), np.float32)
    columns = FloatZero(np.zeros((72, 9), np.uint8), scale, scale, (1, 3), 4)
    assert "do not lie along the rows" in refusal(float_zero, columns, matmul((72, 9)))
