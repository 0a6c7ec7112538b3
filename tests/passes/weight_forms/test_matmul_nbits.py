"""Blocks as MatMulNBits, every combination of bits, blocks, zero points, types and accuracy levels."""

import itertools

import numpy as np
import pytest
from harness import ops
from hypothesis import given, settings
from hypothesis import strategies as st
from weightforms import RTOL, check_form, matmul, refusal, run, simulated, write

from qgraph import onnx_io
from qgraph.encoding import INTEGERS, Encoding, Spec, encode_array, quantize
from qgraph.facts import QuantizedWeight
from qgraph.passes.weight_forms.matmul_nbits import _cheapest, matmul_nbits
from qgraph.passes.weights.results import FloatZero

SHAPES = [(64, 16), (72, 9), (300, 5)]


def uniform(dtype, shape, block, zero_points, seed=0):
    """Random codes; `block` 0 for one scale a column."""
    low, high, kind = INTEGERS[dtype]
    rng = np.random.default_rng(seed)
    blocks = -(-shape[0] // block) if block else 1
    scale = rng.uniform(0.01, 0.1, (blocks, shape[1])).astype(np.float16).astype(np.float32)
    middle = 0 if low < 0 else (high + 1) // 2
    zero = np.full(scale.shape, middle)
    if zero_points:
        zero = rng.integers(low, high + 1, scale.shape)
    codes = rng.integers(low, high + 1, shape).astype(kind)
    return QuantizedWeight(codes, Encoding(dtype, scale, zero, (block, 1)), 0.0)


def float_zero(width, shape, block, seed=0):
    rng = np.random.default_rng(seed)
    blocks = -(-shape[0] // block) if block else 1
    codes = rng.integers(0, 1 << width, shape).astype(np.uint8)
    scale = rng.uniform(0.01, 0.1, (blocks, shape[1])).astype(np.float16).astype(np.float32)
    zero = rng.uniform(0, (1 << width) - 1, scale.shape).astype(np.float16).astype(np.float32)
    return FloatZero(codes, scale, zero, (block, 1), width)


def attributes(proto):
    return {a.name: a.i for a in proto.graph.node[0].attribute}


def bound(x, weight, block):
    """Largest error that int8 data can make: half a step of each block's largest magnitude."""
    spare = -x.shape[1] % block
    parts = np.pad(np.abs(x.astype(np.float64)), ((0, 0), (0, spare)))
    steps = parts.reshape(len(x), -1, block).max(axis=2) / 254
    sums = np.add.reduceat(np.abs(weight), np.arange(0, x.shape[1], block), axis=0)
    return steps @ sums


@pytest.mark.parametrize(
    "dtype", ["int2", "uint2", "int3", "uint3", "int4", "uint4", "int8", "uint8"]
)
@pytest.mark.parametrize("zero_points", [True, False])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_every_block_and_size(dtype, zero_points, kind):
    for block, shape in itertools.product([0, 16, 32, 48, 64, 128, 256, 512], SHAPES):
        weight = uniform(dtype, shape, block, zero_points)
        for level in (0, 1):
            out = check_form(
                matmul_nbits, weight, dtype=kind, rows=(1, 3), both=False, accuracy_level=level
            )
            assert ops(out) == ["MatMulNBits"]
            assert attributes(out)["bits"] == {"2": 2, "3": 4, "4": 4, "8": 8}[dtype[-1]]


@pytest.mark.parametrize("dtype", ["int2", "uint2", "int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("zero_points", [True, False])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_accuracy_level_4_rounds_the_data_and_no_more(dtype, zero_points, kind):
    rng = np.random.default_rng(1)
    for block, shape in itertools.product([16, 32, 64, 128, 256, 512], SHAPES):
        weight = uniform(dtype, shape, block, zero_points)
        proto = matmul(shape, kind)
        out = onnx_io.to_proto(write(matmul_nbits, weight, proto, accuracy_level=4))
        floats = simulated(weight).astype(np.float64)
        for rows in (1, 3, 40):
            x = rng.standard_normal((rows, shape[0])).astype(kind)
            want = x.astype(np.float64) @ floats
            slack = RTOL[kind] * np.abs(want).max()
            # onnxruntime may round in larger blocks than the weight's: those of 32 at least.
            assert (np.abs(run(out, x) - want) <= bound(x, floats, max(block, 32)) + slack).all()


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("level", [0, 1, 4])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_float_zero_points(width, level, kind):
    for block, shape in itertools.product([0, 16, 48, 128, 512], SHAPES[1:]):
        weight = float_zero(width, shape, block)
        # Level 4 makes no difference here: onnxruntime computes in float.
        out = check_form(matmul_nbits, weight, dtype=kind, both=False, accuracy_level=level)
        assert ops(out) == ["MatMulNBits"] and len(out.graph.node[0].input) == 4


def test_one_scale_in_all_and_one_a_column():
    values = np.random.default_rng(0).standard_normal((576, 6)).astype(np.float32)
    for spec in (Spec("int8"), Spec("int8", axis=1), Spec("uint8", False, axis=1)):
        encoding = encode_array(values, spec)
        weight = QuantizedWeight(quantize(values, encoding), encoding, 0.0)
        out = check_form(matmul_nbits, weight)
        # Not 1024, which would store 448 rows of nothing.
        assert attributes(out)["block_size"] == 64


def test_any_number_of_axes_in_front():
    weight = uniform("uint4", (64, 6), 32, True)
    proto = matmul((64, 6))
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim.add().CopyFrom(value.type.tensor_type.shape.dim[1])
        value.type.tensor_type.shape.dim[1].dim_value = 3
    x = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float32)
    have = run(onnx_io.to_proto(write(matmul_nbits, weight, proto)), x)
    want = x.astype(np.float64) @ simulated(weight)
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-5 * np.abs(want).max())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5000), st.sampled_from([2, 4, 8]))
def test_the_cheapest_block_is_one_that_kernels_take(depth, bits):
    limit = 256 if bits == 2 else 1 << 30
    block = _cheapest(depth, bits, limit)
    assert 16 <= block <= limit and block & (block - 1) == 0

    def size(length):
        return -(-depth // length) * (length * bits / 8 + 5)

    assert all(size(block) <= size(1 << p) for p in range(4, 14) if 1 << p <= limit)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (uniform("int4", (100, 4), 20, False), "blocks of 20 are no multiple of 16"),
        (uniform("int4", (100, 4), 8, False), "blocks of 8"),
        (float_zero(8, (64, 4), 32), "no float zero points with 8 bits"),
        (float_zero(5, (64, 4), 32), "5 bits"),
        (uniform("int16", (64, 4), 32, False), "its codes are int16"),
    ],
)
def test_refusals(weight, reason):
    assert reason in refusal(matmul_nbits, weight, matmul(weight.codes.shape))


def test_batches_and_scales_a_row_are_refused():
    values = np.ones((3, 64, 4), np.float32)
    encoding = encode_array(values, Spec("int4"))
    batch = QuantizedWeight(quantize(values, encoding), encoding, 0.0)
    assert "one matrix" in refusal(matmul_nbits, batch, matmul((3, 64, 4)))
    encoding = encode_array(values[0], Spec("int4", axis=0))
    rows = QuantizedWeight(quantize(values[0], encoding), encoding, 0.0)
    assert "a scale a row" in refusal(matmul_nbits, rows, matmul((64, 4)))
