import numpy as np
import pytest
from formulas import Formula
from harness import check_fires, check_stays, ops
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qgraph.passes.fusions.layernorm import LayerNorm
from qgraph.passes.fusions.rmsnorm import RMSNorm

SHAPE = {"x": ["batch", 5, 8]}
RNG = np.random.default_rng(0)
SCALE = RNG.uniform(0.5, 2, 8)


def normed(f, x="x", axes=(-1,), keepdims=1, epsilon=1e-5):
    square = f.op("Mul", x, x) if f.choose(2) else f.op("Pow", x, f.const(2.0))
    inside = f.either("Add", f.mean(square, axes, keepdims), f.const(epsilon))
    how = f.choose(4)
    if how == 3:
        return f.either("Mul", x, f.op("Pow", inside, f.const(-0.5)))
    root = f.op("Sqrt", inside)
    if how == 0:
        return f.either("Mul", x, f.op("Reciprocal", root))
    if how == 1:
        return f.op("Div", x, root)
    return f.either("Mul", x, f.op("Div", f.const(1.0), root))


def rmsnorm(f, scale=SCALE, **more):
    return f.either("Mul", normed(f, **more), f.const(scale, f.dtype))


def written(proto):
    node = next(n for n in proto.graph.node if n.op_type == "RMSNormalization")
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


@settings(max_examples=50, deadline=None)
@given(st.data(), st.sampled_from([23, 24, 26]), st.sampled_from([1e-6, 1e-3]))
def test_in_every_order(data, opset, epsilon):
    f = Formula(lambda n: data.draw(st.integers(0, n - 1)), opset=opset)
    out = check_fires(RMSNorm(), f.model(SHAPE, rmsnorm(f, epsilon=epsilon)), changed=1)
    assert ops(out) == ["RMSNormalization"]
    assert written(out) == {"axis": -1, "epsilon": pytest.approx(epsilon)}


def test_without_scale():
    f = Formula(opset=23)
    assert ops(check_fires(RMSNorm(), f.model(SHAPE, normed(f)), changed=1)) == ["RMSNormalization"]


def test_over_two_axes():
    f = Formula(opset=23)
    scale = RNG.uniform(0.5, 2, (5, 8))
    out = check_fires(RMSNorm(), f.model(SHAPE, rmsnorm(f, scale, axes=[1, 2])), changed=1)
    assert written(out)["axis"] == -2


@pytest.mark.parametrize("opset", [17, 21, 22])
def test_before_opset_23_it_says_so_once(opset):
    f = Formula(opset=opset)
    reason = f"RMSNormalization needs opset 23, the model has {opset}"
    reports = check_stays(RMSNorm(), f.model(SHAPE, rmsnorm(f)), reason)
    assert len(reports[-1].refused) == 1


def test_scale_along_other_axes_leaves_the_rest():
    f = Formula(opset=23)
    proto = f.model(SHAPE, rmsnorm(f, RNG.uniform(0.5, 2, (5, 1))))
    assert ops(check_fires(RMSNorm(), proto, changed=1)) == ["RMSNormalization", "Mul"]


@pytest.mark.parametrize("axes", [[1], [0, 2]])
def test_other_axes_are_refused(axes):
    f = Formula(opset=23)
    check_stays(RMSNorm(), f.model(SHAPE, rmsnorm(f, axes=axes)), "over the last axes")


def test_unknown_length_without_scale_is_refused():
    f = Formula(opset=23)
    proto = f.model({"x": ["batch", "width"]}, normed(f))
    check_stays(RMSNorm(), proto, "the length of the normalised axes is unknown")


def test_dropped_axes_are_refused():
    f = Formula(opset=23)
    check_stays(RMSNorm(), f.model({"x": [8, 8]}, rmsnorm(f, keepdims=0)), "drops its axes")


def test_float64_is_refused():
    f = Formula(dtype=np.float64, opset=23)
    check_stays(RMSNorm(), f.model(SHAPE, rmsnorm(f)), "does not compute in double")


def test_an_unfused_layernorm_is_not_half_fused():
    f = Formula(opset=23)
    centred = f.op("Sub", "x", f.mean("x", [1]))
    check_stays(RMSNorm(), f.model(SHAPE, rmsnorm(f, x=centred)), "second half of a LayerNorm")


def test_after_layernorm_nothing_is_left_to_refuse():
    f = Formula(opset=23)
    y = rmsnorm(f, x=f.op("Sub", "x", f.mean("x", [-1])))
    reports = check_stays([LayerNorm(), RMSNorm()], f.model(SHAPE, y))
    assert reports[0].changed == 1 and not reports[1].refused


def test_a_second_reader_inside_stays():
    f = Formula(opset=23)
    y = rmsnorm(f)
    root = next(n.name for n in f.nodes if n.op_type == "Sqrt")
    check_stays(RMSNorm(), f.model(SHAPE, y, root))


def test_the_square_of_another_value_stays():
    f = Formula(opset=23)
    inside = f.op("Add", f.mean(f.op("Pow", "z", f.const(2.0)), [-1]), f.const(1e-5))
    y = f.op("Div", "x", f.op("Sqrt", inside))
    check_stays(RMSNorm(), f.model({**SHAPE, "z": SHAPE["x"]}, y))


@pytest.mark.parametrize("exponent", [3.0, 1.0])
def test_another_power_stays(exponent):
    f = Formula(opset=23)
    inside = f.op("Add", f.mean(f.op("Pow", "x", f.const(exponent)), [-1]), f.const(1e-5))
    check_stays(RMSNorm(), f.model(SHAPE, f.op("Div", "x", f.op("Sqrt", inside))))


@pytest.mark.parametrize("affine", [np.float16, np.float32])
def test_between_casts_as_llama_writes_it(affine):
    f = Formula(opset=23)
    wide = f.op("Cast", "x", to=TensorProto.FLOAT)
    y = normed(f, wide)
    if affine is np.float16:
        y = f.op("Mul", f.const(SCALE, affine), f.op("Cast", y, to=TensorProto.FLOAT16))
    else:
        y = f.op("Cast", f.op("Mul", y, f.const(SCALE, affine)), to=TensorProto.FLOAT16)
    proto = f.model(SHAPE, y, types={"x": np.float16, y: np.float16})
    out = check_fires(RMSNorm(), proto, changed=1, rtol=2e-3)
    only, casts = ["RMSNormalization"], ["Cast", "RMSNormalization", "Cast"]
    assert ops(out) == (only if affine is np.float16 else casts)


def test_residual_stream_of_two_blocks():
    f = Formula(opset=23)
    x = "x"
    for _ in range(2):
        x = f.op("Add", x, f.op("Tanh", rmsnorm(f, x=x)))
    out = check_fires(RMSNorm(), f.model(SHAPE, x), changed=2)
    assert ops(out) == ["RMSNormalization", "Tanh", "Add"] * 2
