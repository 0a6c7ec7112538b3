"""A blocked weight as MatMulNBits, and its layout; test_unpack_matmul_nbits goes there and back."""

import numpy as np
import onnx
import pytest
from harness import apply, check_stays, ops, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from qgraph.passes.rewrites.pack_matmul_nbits import PackMatMulNBits
from qgraph.passes.weight_forms import _nbits as nbits

# -- packing: plain arrays -------------------------------------------------------------------


def naive_codes(packed, bits, block, depth):
    """One code at a time, from the description of the operator."""
    width = packed.shape[0]
    result = np.zeros((depth, width), np.uint8)
    for k in range(depth):
        for n in range(width):
            byte = packed[n, k // block, (k % block) * bits // 8]
            result[k, n] = (byte >> (k * bits % 8)) & ((1 << bits) - 1)
    return result


sizes = st.tuples(st.integers(1, 70), st.integers(1, 5), st.sampled_from([16, 32, 64]))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 4, 8]), sizes, st.integers(0, 2**32 - 1))
def test_packing_there_and_back(bits, size, seed):
    depth, width, block = size
    rng = np.random.default_rng(seed)
    blocks = -(-depth // block)
    codes = rng.integers(0, 1 << bits, (depth, width)).astype(np.uint8)
    zero = rng.integers(0, 1 << bits, (blocks, width)).astype(np.uint8)
    packed = nbits.pack_codes(codes, bits, block, zero)
    assert packed.shape == (width, blocks, nbits.block_bytes(bits, block))
    np.testing.assert_array_equal(naive_codes(packed, bits, block, depth), codes)
    np.testing.assert_array_equal(nbits.unpack_codes(packed, bits, depth), codes)
    points = nbits.pack_zero_points(zero, bits)
    assert points.size == nbits.zero_point_bytes(bits, blocks, width)
    np.testing.assert_array_equal(nbits.unpack_zero_points(points, bits, blocks, width), zero)
    again = nbits.pack_codes(nbits.unpack_codes(packed, bits, depth), bits, block, zero)
    np.testing.assert_array_equal(again, packed)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=9), st.sampled_from([2, 4]))
def test_bytes_split_and_join(values, bits):
    packed = np.array(values, np.uint8)
    np.testing.assert_array_equal(nbits.pack(nbits.unpack(packed, bits), bits), packed)


def blocked(weight, scale, *, axis=0, block=32, extra=(), x_axes=(2,)):
    depth, width = weight.shape
    arrays = {"w": weight, "s": scale, **dict(extra)}
    nodes = [
        helper.make_node(
            "DequantizeLinear", ["w", "s", *dict(extra)], ["d"], axis=axis, block_size=block
        ),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", 1, [*x_axes, depth])
    y = helper.make_tensor_value_info("y", 1, [*x_axes, width])
    constants = [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "net", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_negative_axes_are_packed_too():
    weight = np.arange(64 * 3).reshape(64, 3).astype(np.int8)
    proto = blocked(weight, np.ones((2, 3), np.float32), axis=-2)
    out, _, _ = apply(PackMatMulNBits(accuracy_level=1), proto)
    assert ops(out) == ["MatMulNBits"]
    [level] = [a.i for a in out.graph.node[0].attribute if a.name == "accuracy_level"]
    assert level == 1


def test_blocks_that_are_no_power_of_two_become_shorter_ones():
    weight = np.arange(120 * 3).reshape(120, 3).astype(np.int8)
    scale = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)
    proto = blocked(weight, scale, block=48)
    out, _, _ = apply(PackMatMulNBits(accuracy_level=1), proto)
    assert ops(out) == ["MatMulNBits"]
    for rows in np.eye(120, dtype=np.float32).reshape(60, 2, 120):
        want = run_reference(proto, {"x": rows})["y"]
        np.testing.assert_array_equal(run_reference(out, {"x": rows})["y"], want)


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (blocked(np.ones((64, 32), np.int8), np.ones((64, 1), np.float32), axis=1), "first of two"),
        (blocked(np.ones((64, 3), np.int8), np.ones((8, 3), np.float32), block=8), "blocks of 8"),
        (blocked(np.ones((64, 3), np.int16), np.ones((2, 3), np.float32)), "int16"),
        (blocked(np.ones((64, 3), np.int8), np.ones((2, 3), np.float32), x_axes=()), "one axis"),
    ],
)
def test_what_is_not_packed(proto, reason):
    check_stays(PackMatMulNBits(), proto, reason)


def test_scales_a_channel_are_no_business_of_packing():
    proto = blocked(np.ones((64, 3), np.int8), np.ones(3, np.float32), axis=1, block=0)
    assert check_stays(PackMatMulNBits(), proto)[-1].refused == []
