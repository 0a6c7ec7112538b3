"""Tables of each channel as lookups in plain operators."""

import numpy as np
import pytest
from harness import ops
from onnx.reference import ReferenceEvaluator
from weightforms import check_form, matmul, refusal, run, simulated, write

from qgraph import onnx_io
from qgraph.passes.weight_forms.codebook import channel_codebook
from qgraph.passes.weights.results import ChannelCodebook


def weight_of(width=4, shape=(33, 5), sparse=7, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << width, shape).astype(np.uint8)
    table = np.sort(rng.standard_normal((1 << width, shape[1])), axis=0).astype(np.float32)
    flat = np.sort(rng.choice(codes.size, sparse, replace=False))
    indices = np.stack(np.unravel_index(flat, shape), axis=1).astype(np.int64)
    values = rng.standard_normal(sparse).astype(np.float32)
    return ChannelCodebook(codes, table, indices, values, width)


@pytest.mark.parametrize("width", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("sparse", [0, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_products(width, sparse, dtype):
    out = check_form(channel_codebook, weight_of(width, sparse=sparse), dtype=dtype)
    assert ("ScatterND" in ops(out)) == bool(sparse)


@pytest.mark.parametrize("sparse", [0, 7])
def test_the_weight_is_the_simulation_bit_for_bit(sparse):
    weight = weight_of(sparse=sparse)
    out = onnx_io.to_proto(write(channel_codebook, weight, matmul((33, 5))))
    eye = np.eye(33, dtype=np.float32)
    np.testing.assert_array_equal(run(out, eye), simulated(weight))
    np.testing.assert_array_equal(ReferenceEvaluator(out).run(None, {"x": eye})[0], run(out, eye))


def test_codes_take_half_a_byte():
    weight = weight_of(3, (512, 64), 10)
    proto = onnx_io.to_proto(write(channel_codebook, weight, matmul((512, 64))))
    assert proto.ByteSize() < 512 * 64 / 2 + 4 * 8 * 64 + 10 * 20 + 1500


def test_4_bit_types_need_opset_21():
    assert "opset 21" in refusal(channel_codebook, weight_of(), matmul((33, 5), opset=20))
