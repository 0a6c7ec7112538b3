"""MatMulNBits and blocked DequantizeLinear: each as the other, to the bit: unpacking, and there and back."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from harness import apply, check_stays, ops, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from qgraph.passes.rewrites.pack_matmul_nbits import PackMatMulNBits
from qgraph.passes.rewrites.unpack_matmul_nbits import UnpackMatMulNBits
from qgraph.passes.weight_forms import _nbits as nbits

FLOATS = {np.float32: onnx.TensorProto.FLOAT, np.float16: onnx.TensorProto.FLOAT16}


def net(arrays, inputs, *, depth, width, dtype=np.float32, opset=21, **attributes):
    node = helper.make_node(
        "MatMulNBits",
        inputs,
        ["y"],
        "matmul",
        domain="com.microsoft",
        K=depth,
        N=width,
        **attributes,
    )
    x = helper.make_tensor_value_info("x", FLOATS[dtype], ["rows", depth])
    y = helper.make_tensor_value_info("y", FLOATS[dtype], ["rows", width])
    constants = [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph([node], "net", [x], [y], constants)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def random_net(seed, *, bits=4, block=32, depth=96, width=5, zero_points=True, flat=False, **more):
    rng = np.random.default_rng(seed)
    blocks = -(-depth // block)
    dtype = more.get("dtype", np.float32)
    codes = rng.integers(0, 1 << bits, (depth, width)).astype(np.uint8)
    zero = rng.integers(0, 1 << bits, (blocks, width)).astype(np.uint8)
    zero = zero if zero_points else np.full_like(zero, 1 << (bits - 1))
    arrays = {
        "packed": nbits.pack_codes(codes, bits, block, zero),
        "scales": rng.uniform(0.01, 1, (width, blocks)).astype(dtype),
    }
    inputs = ["x", "packed", "scales"]
    if zero_points:
        arrays["zero_points"] = nbits.pack_zero_points(zero, bits)
        inputs.append("zero_points")
    if flat:
        arrays["scales"] = arrays["scales"].reshape(-1)
        arrays |= {"zero_points": arrays["zero_points"].reshape(-1)} if zero_points else {}
    return net(arrays, inputs, depth=depth, width=width, bits=bits, block_size=block, **more)


def weight_of(proto, depth):
    """The weight as the model computes with it: its product with the identity, exact in float."""
    dtype = helper.tensor_dtype_to_np_dtype(proto.graph.input[0].type.tensor_type.elem_type)
    return run_reference(proto, {"x": np.eye(depth, dtype=dtype)})["y"]


def constants(proto):
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 128]),
    st.sampled_from([64, 96, 128, 200]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_the_weight_is_onnxruntimes_own_and_comes_back(bits, block, depth, zero_points, flat, seed):
    proto = random_net(
        seed, bits=bits, block=block, depth=depth, zero_points=zero_points, flat=flat
    )
    out, reports, _ = apply(UnpackMatMulNBits(), proto)
    assert reports[-1].changed == 1 and ops(out) == ["DequantizeLinear", "MatMul"]
    want = weight_of(proto, depth)
    np.testing.assert_array_equal(weight_of(out, depth), want)
    eye = {"x": np.eye(depth, dtype=np.float32)}
    np.testing.assert_array_equal(ReferenceEvaluator(out).run(None, eye)[0], want)
    back, reports, _ = apply(PackMatMulNBits(), out)
    assert reports[-1].changed == 1 and ops(back) == ["MatMulNBits"]
    np.testing.assert_array_equal(weight_of(back, depth), want)
    before = [a.reshape(-1).tobytes() for a in constants(proto).values()]
    assert [a.reshape(-1).tobytes() for a in constants(back).values()] == before


@pytest.mark.parametrize("zero_points", [True, False])
@pytest.mark.parametrize(("opset", "width", "kind"), [(21, 8, "4"), (25, 8, "2"), (25, 6, "4")])
def test_two_bits(opset, width, kind, zero_points):
    proto = random_net(0, bits=2, width=width, depth=72, zero_points=zero_points, opset=opset)
    out, _, _ = apply(UnpackMatMulNBits(), proto)
    codes = constants(out)[out.graph.node[0].input[0]]
    assert codes.dtype.name == f"{'uint' if zero_points else 'int'}{kind}"
    for back in (proto, out, apply(PackMatMulNBits(accuracy_level=1), out)[0]):
        np.testing.assert_array_equal(weight_of(back, 72), weight_of(proto, 72))
    if kind == "2":
        before = [a.reshape(-1).tobytes() for a in constants(proto).values()]
        assert [a.reshape(-1).tobytes() for a in constants(back).values()] == before


def test_float16_scales():
    proto = random_net(0, dtype=np.float16)
    out, _, _ = apply(UnpackMatMulNBits(), proto)
    np.testing.assert_array_equal(weight_of(out, 96), weight_of(proto, 96))
    back, _, _ = apply(PackMatMulNBits(), out)
    assert ops(back) == ["MatMulNBits"]


@pytest.mark.parametrize(("bits", "kind"), [(4, ml_dtypes.int4), (8, np.int8)])
def test_middle_zero_points_give_signed_codes(bits, kind):
    proto = random_net(0, bits=bits, zero_points=False)
    out, _, _ = apply(UnpackMatMulNBits(), proto)
    dq = out.graph.node[0]
    assert len(dq.input) == 2 and constants(out)[dq.input[0]].dtype == kind
    assert [(a.name, a.i) for a in dq.attribute] == [("axis", 0), ("block_size", 32)]


def test_any_number_of_axes_in_front():
    proto = random_net(1)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim.insert(0, onnx.TensorShapeProto.Dimension(dim_value=2))
    out, _, _ = apply(UnpackMatMulNBits(), proto)
    x = np.random.default_rng(0).standard_normal((2, 3, 96)).astype(np.float32)
    want, have = run_reference(proto, {"x": x})["y"], run_reference(out, {"x": x})["y"]
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)


def test_a_bias_becomes_an_add():
    proto = random_net(2)
    proto.graph.initializer.append(
        onnx.numpy_helper.from_array(np.arange(5, dtype=np.float32), "bias")
    )
    proto.graph.node[0].input.extend(["", "bias"])
    out, _, _ = apply(UnpackMatMulNBits(), proto)
    assert ops(out) == ["DequantizeLinear", "MatMul", "Add"]
    x = np.random.default_rng(0).standard_normal((3, 96)).astype(np.float32)
    want, have = run_reference(proto, {"x": x})["y"], run_reference(out, {"x": x})["y"]
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)


def test_zero_points_as_floats():
    zero = np.arange(15, dtype=np.float32).reshape(5, 3)
    proto = random_net(3, zero_points=False)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(zero, "zero_points"))
    proto.graph.node[0].input.append("zero_points")
    out, _, _ = apply(UnpackMatMulNBits(), proto)
    # onnxruntime multiplies code and zero point apart here, which rounds once more.
    want = weight_of(proto, 96)
    np.testing.assert_allclose(weight_of(out, 96), want, rtol=0, atol=2e-7 * np.abs(want).max())
    del proto.graph.initializer[-1]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(zero + 0.5, "zero_points"))
    check_stays(UnpackMatMulNBits(), proto, "fraction")


def replaced(proto, name, array):
    kept = [t for t in proto.graph.initializer if t.name != name]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([*kept, onnx.numpy_helper.from_array(array, name)])
    return proto


def with_group_index(proto):
    index = np.arange(96, dtype=np.int32) // 32
    proto.graph.initializer.append(onnx.numpy_helper.from_array(index, "g_idx"))
    proto.graph.node[0].input.append("g_idx")
    return proto


def attribute(proto, name, value):
    kept = [a for a in proto.graph.node[0].attribute if a.name != name]
    del proto.graph.node[0].attribute[:]
    proto.graph.node[0].attribute.extend([*kept, helper.make_attribute(name, value)])
    return proto


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_group_index, "g_idx"),
        (lambda p: attribute(p, "weight_prepacked", 1), "prepacked"),
        (lambda p: attribute(p, "bits", 3), "3 bits"),
        (lambda p: attribute(p, "block_size", 24), "no valid size"),
        (lambda p: attribute(p, "K", 2**40), "bytes"),
        (lambda p: replaced(p, "packed", np.zeros(7, np.uint8)), "7 bytes"),
        (lambda p: replaced(p, "scales", np.ones(4, np.float32)), "4 scales"),
        (lambda p: replaced(p, "zero_points", np.zeros(3, np.uint8)), "3 bytes"),
    ],
)
def test_what_is_not_unpacked(change, reason):
    check_stays(UnpackMatMulNBits(), change(random_net(0)), reason)


def test_blocks_need_opset_21():
    check_stays(UnpackMatMulNBits(), random_net(0, opset=20), "opset 21")
