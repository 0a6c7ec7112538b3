"""NF4 and FP4 as MatMulBnb4 and in plain operators."""

from dataclasses import replace

import numpy as np
import pytest
from harness import ops
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from weightforms import check_form, matmul, refusal, run, simulated, write

from qgraph import onnx_io
from qgraph.passes.weight_forms.bnb4 import block_codebook, matmul_bnb4, pack, unpack
from qgraph.passes.weights.codebooks import table_rounding

# Blocks that end with rows, that run over into the next column, odd sizes, a last one half full.
SHAPES = [(64, 8), (72, 9), (33, 5), (7, 3)]


def weight_of(table="nf4", shape=(72, 9), block=64):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return table_rounding(values, table=table, block=block)


@pytest.mark.parametrize("form", [matmul_bnb4, block_codebook])
@pytest.mark.parametrize("table", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_products(form, table, shape, dtype):
    for block in (16, 32, 64, 128, 256):
        out = check_form(form, weight_of(table, shape, block), dtype=dtype)
        assert ("MatMulBnb4" in ops(out)) == (form is matmul_bnb4)


def test_plain_operators_give_the_simulation_bit_for_bit():
    for shape in SHAPES:
        weight = weight_of("fp4", shape, 32)
        out = onnx_io.to_proto(write(block_codebook, weight, matmul(shape)))
        eye = np.eye(shape[0], dtype=np.float32)
        np.testing.assert_array_equal(run(out, eye), simulated(weight))
        np.testing.assert_array_equal(
            ReferenceEvaluator(out).run(None, {"x": eye})[0], run(out, eye)
        )


def test_codes_take_half_a_byte():
    weight = weight_of(shape=(512, 64))
    for form in (matmul_bnb4, block_codebook):
        proto = onnx_io.to_proto(write(form, weight, matmul((512, 64))))
        assert proto.ByteSize() < 512 * 64 / 2 + 4 * weight.absmax.size + 1500


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_packing_there_and_back(depth, width, seed):
    codes = np.random.default_rng(seed).integers(0, 16, (depth, width)).astype(np.uint8)
    packed = pack(codes)
    assert packed.shape == (-(-depth * width // 2),)
    np.testing.assert_array_equal(unpack(packed, depth, width), codes)


@pytest.mark.parametrize(
    ("form", "weight", "opset", "reason"),
    [
        (matmul_bnb4, replace(weight_of(), table=np.linspace(-1, 1, 16)), 21, "NF4 and FP4 alone"),
        (matmul_bnb4, weight_of(block=48), 21, "no blocks of 48"),
        (block_codebook, weight_of(), 20, "opset 21"),
    ],
)
def test_refusals(form, weight, opset, reason):
    assert reason in refusal(form, weight, matmul(weight.codes.shape, opset=opset))


def test_any_table_and_block_in_plain_operators():
    weight = weight_of(block=48)
    other = replace(weight, table=np.linspace(-1, 1, 16).astype(np.float32))
    assert "Slice" in ops(check_form(block_codebook, other))
