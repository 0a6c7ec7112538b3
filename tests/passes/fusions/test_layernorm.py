import ml_dtypes
import numpy as np
import pytest
from formulas import Formula
from harness import apply, check_fires, check_stays, ops
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from realmodels import ROOT, shared

from qgraph import onnx_io
from qgraph.passes.fusions.layernorm import LayerNorm

SHAPE = {"x": ["batch", 5, 8]}
RNG = np.random.default_rng(0)
SCALE, BIAS = RNG.uniform(0.5, 2, 8), RNG.standard_normal(8)


def normed(f, x="x", axes=(-1,), keepdims=1, second_axes=None, epsilon=1e-5, shared_sub=True):
    mean = f.mean(x, axes, keepdims)
    centred = f.op("Sub", x, mean)
    again = centred if shared_sub else f.op("Sub", x, mean)
    square = f.op("Mul", again, again) if f.choose(2) else f.op("Pow", again, f.const(2.0))
    inside = f.either("Add", f.mean(square, second_axes or axes, keepdims), f.const(epsilon))
    how = f.choose(4)
    if how == 3:
        return f.either("Mul", centred, f.op("Pow", inside, f.const(-0.5)))
    root = f.op("Sqrt", inside)
    if how == 0:
        return f.op("Div", centred, root)
    if how == 1:
        return f.either("Mul", centred, f.op("Reciprocal", root))
    return f.either("Mul", centred, f.op("Div", f.const(1.0), root))


def layernorm(f, scale=SCALE, bias=BIAS, **more):
    y = normed(f, **more)
    if scale is not None:
        y = f.either("Mul", y, f.const(scale, f.dtype))
    if bias is not None:
        y = f.either("Add", y, f.const(bias, f.dtype))
    return y


def written(proto):
    node = next(n for n in proto.graph.node if n.op_type == "LayerNormalization")
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([17, 18, 21]), st.booleans())
def test_in_every_order(data, opset, shared_sub):
    f = Formula(lambda n: data.draw(st.integers(0, n - 1)), opset=opset)
    proto = f.model(SHAPE, layernorm(f, shared_sub=shared_sub))
    out = check_fires(LayerNorm(), proto, changed=1)
    assert ops(out) == ["LayerNormalization"]
    assert written(out) == {"axis": -1, "epsilon": pytest.approx(1e-5)}


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 0.1])
def test_epsilon_is_kept(epsilon):
    f = Formula()
    out = check_fires(LayerNorm(), f.model(SHAPE, layernorm(f, epsilon=epsilon)), changed=1)
    assert written(out)["epsilon"] == pytest.approx(epsilon)


def test_scale_without_bias():
    f = Formula()
    out = check_fires(LayerNorm(), f.model(SHAPE, layernorm(f, bias=None)), changed=1)
    assert ops(out) == ["LayerNormalization"] and len(out.graph.node[0].input) == 2


def test_without_scale_and_bias():
    f = Formula()
    proto = f.model(SHAPE, layernorm(f, scale=None, bias=None))
    out = check_fires(LayerNorm(), proto, changed=1)
    assert ops(out) == ["LayerNormalization"]
    np.testing.assert_array_equal(numpy_helper.to_array(out.graph.initializer[-1]), np.ones(8))


def test_bias_without_scale_keeps_its_add():
    f = Formula()
    out = check_fires(LayerNorm(), f.model(SHAPE, layernorm(f, scale=None)), changed=1)
    assert ops(out) == ["LayerNormalization", "Add"]


@pytest.mark.parametrize("axes", [[1, 2], [-2, -1], [2, 1], [-1, 1]])
def test_over_two_axes(axes):
    scale, bias = RNG.uniform(0.5, 2, (5, 8)), RNG.standard_normal((5, 8))
    f = Formula()
    proto = f.model(SHAPE, layernorm(f, scale, bias, axes=axes))
    assert written(check_fires(LayerNorm(), proto, changed=1))["axis"] == -2


def test_axes_written_in_two_ways():
    f = Formula()
    check_fires(LayerNorm(), f.model(SHAPE, layernorm(f, axes=[2], second_axes=[-1])), changed=1)


def test_over_all_axes():
    f = Formula()
    proto = f.model({"x": [5, 8]}, layernorm(f, axes=None))
    assert written(check_fires(LayerNorm(), proto, changed=1))["axis"] == -2


@pytest.mark.parametrize("shape", [[8], [1, 8], [1, 1, 8], [1], []])
def test_parameter_shapes(shape):
    scale = RNG.uniform(0.5, 2, shape)
    f = Formula()
    proto = f.model(SHAPE, layernorm(f, scale, RNG.standard_normal(shape)))
    assert ops(check_fires(LayerNorm(), proto, changed=1)) == ["LayerNormalization"]


@pytest.mark.parametrize(("axes", "shape"), [([-1], [5, 1]), ([-1], [5, 8]), ([1, 2], [2, 5, 8])])
def test_scale_along_other_axes_leaves_the_rest(axes, shape):
    f = Formula()
    proto = f.model({"x": [2, 5, 8]}, layernorm(f, RNG.uniform(0.5, 2, shape), axes=axes))
    out = check_fires(LayerNorm(), proto, changed=1)
    assert ops(out) == ["LayerNormalization", "Mul", "Add"]


@pytest.mark.parametrize("name", ["scale", "bias"])
def test_parameters_that_lengthen_the_axis_leave_the_rest(name):
    f = Formula()
    wide = RNG.uniform(0.5, 2, 8)
    proto = f.model(
        {"x": [2, 5, 1]}, layernorm(f, **{"scale": np.ones(1), "bias": np.ones(1), name: wide})
    )
    left = {"scale": ["Mul", "Add"], "bias": ["Add"]}[name]
    assert ops(check_fires(LayerNorm(), proto, changed=1)) == ["LayerNormalization", *left]


def test_bias_along_other_axes_leaves_the_add():
    f = Formula()
    proto = f.model(SHAPE, layernorm(f, bias=RNG.standard_normal((5, 1))))
    assert ops(check_fires(LayerNorm(), proto, changed=1)) == ["LayerNormalization", "Add"]


def test_scale_from_an_input_leaves_the_rest():
    f = Formula()
    proto = f.model({**SHAPE, "g": [8]}, f.op("Mul", normed(f), "g"))
    assert ops(check_fires(LayerNorm(), proto, changed=1)) == ["LayerNormalization", "Mul"]


def test_last_axis_of_unknown_length():
    f = Formula()
    proto = f.model({"x": ["batch", "width"]}, layernorm(f))
    feeds = {"x": RNG.standard_normal((3, 8)).astype(np.float32)}
    check_fires(LayerNorm(), proto, changed=1, feeds=feeds)


def test_last_axis_of_unknown_length_without_scale_is_refused():
    f = Formula()
    proto = f.model({"x": ["batch", "width"]}, normed(f))
    check_stays(LayerNorm(), proto, "the length of the normalised axes is unknown")


def test_scalar_scale_for_unknown_length_leaves_all():
    f = Formula()
    proto = f.model({"x": ["batch", "width"]}, layernorm(f, np.float32(2), None))
    check_stays(LayerNorm(), proto, "the length that the scale is repeated to is unknown")


@pytest.mark.parametrize(("axes", "second"), [([1], None), ([0, 2], None), ([-1], [1, 2])])
def test_other_axes_are_refused(axes, second):
    f = Formula()
    proto = f.model(SHAPE, layernorm(f, scale=None, bias=None, axes=axes, second_axes=second))
    reports = check_stays(LayerNorm(), proto, "not known to be over the last axes")
    assert len(reports[-1].refused) == 1


def test_axes_from_an_input_are_refused():
    f = Formula()
    f.mean = lambda x, axes, keepdims=1: f.op("ReduceMean", x, "axes")
    proto = f.model({**SHAPE, "axes": [1]}, layernorm(f), types={"axes": np.int64})
    check_stays(LayerNorm(), proto, "not known to be over the last axes")


def test_positive_axes_of_unknown_rank_are_refused():
    f = Formula()
    free = f.op("Reshape", "x", "shape")
    proto = f.model(
        {**SHAPE, "shape": ["rank"]},
        f.op("ReduceMax", layernorm(f, x=free, axes=[2])),
        types={"shape": np.int64},
    )
    check_stays(LayerNorm(), proto, "not known to be over the last axes")


def test_dropped_axes_are_refused():
    f = Formula()
    proto = f.model({"x": [8, 8]}, layernorm(f, keepdims=0))
    check_stays(LayerNorm(), proto, "the mean drops its axes")


def test_float64_is_refused():
    f = Formula(dtype=np.float64)
    check_stays(LayerNorm(), f.model(SHAPE, layernorm(f)), "does not compute in double")


@pytest.mark.parametrize("opset", [13, 16])
def test_before_opset_17_it_says_so_once(opset):
    f = Formula(opset=opset)
    reason = f"LayerNormalization needs opset 17, the model has {opset}"
    reports = check_stays(LayerNorm(), f.model(SHAPE, layernorm(f)), reason)
    assert len(reports[-1].refused) == 1


def test_epsilon_for_each_row_is_refused():
    f = Formula()
    proto = f.model(SHAPE, layernorm(f, epsilon=np.full((5, 1), 1e-5, np.float32)))
    check_stays(LayerNorm(), proto, "epsilon is not one number")


@pytest.mark.parametrize("name", ["sub", "reducemean", "sqrt", "pow", "div"])
def test_results_that_are_graph_outputs_stay(name):
    f = Formula()
    y = layernorm(f, scale=None, bias=None)
    inner = next(n.name for n in f.nodes if n.name.startswith(name))
    if name == "div":
        y = f.op("Add", f.op("Mul", y, f.const(SCALE)), f.const(BIAS))
        assert ops(check_fires(LayerNorm(), f.model(SHAPE, y, inner), changed=1)) == [
            "LayerNormalization",
            "Mul",
            "Add",
        ]
    else:
        check_stays(LayerNorm(), f.model(SHAPE, y, inner))


def test_a_second_reader_inside_stays():
    f = Formula()
    y = layernorm(f)
    inner = next(n.name for n in f.nodes if n.op_type == "Sub")
    check_stays(LayerNorm(), f.model(SHAPE, f.op("Add", y, inner)))


def test_variance_of_another_value_stays():
    f = Formula()
    centred = f.op("Sub", "x", f.mean("z", [-1]))
    inside = f.op("Add", f.mean(f.op("Pow", centred, f.const(2.0)), [-1]), f.const(1e-5))
    y = f.op("Div", centred, f.op("Sqrt", inside))
    check_stays(LayerNorm(), f.model({**SHAPE, "z": SHAPE["x"]}, y))


def test_input_read_elsewhere_and_residual():
    f = Formula()
    y = f.op("Add", layernorm(f), "x")
    out = check_fires(LayerNorm(), f.model(SHAPE, y), changed=1)
    assert ops(out) == ["LayerNormalization", "Add"]


def test_two_that_share_their_parameters():
    f = Formula()
    scale, bias = f.const(SCALE), f.const(BIAS)

    def one(x):
        return f.op("Add", f.op("Mul", normed(f, x), scale), bias)

    out = check_fires(LayerNorm(), f.model(SHAPE, one(one("x"))), changed=2)
    assert ops(out) == ["LayerNormalization"] * 2


def half(f, dtype, affine_in, cast_read=False):
    """x in a 16-bit type, statistics in float32; scale and bias in the type `affine_in`."""
    to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    wide = f.op("Cast", "x", to=TensorProto.FLOAT)
    y = normed(f, wide)
    if affine_in is not np.float32:
        y = f.op("Cast", y, to=to)
    y = f.op("Add", f.op("Mul", y, f.const(SCALE, affine_in)), f.const(BIAS, affine_in))
    if affine_in is np.float32:
        y = f.op("Cast", y, to=to)
    other = f.op("Exp", wide) if cast_read else None
    return [y] if other is None else [y, other]


def test_casts_around_the_statistics_go():
    f = Formula()
    y = half(f, np.float16, np.float16)
    proto = f.model(SHAPE, *y, types={"x": np.float16, y[0]: np.float16})
    out = check_fires(LayerNorm(), proto, changed=1, rtol=2e-3)
    assert ops(out) == ["LayerNormalization"]


def test_casts_around_everything_stay():
    f = Formula()
    y = half(f, np.float16, np.float32)
    proto = f.model(SHAPE, *y, types={"x": np.float16, y[0]: np.float16})
    out = check_fires(LayerNorm(), proto, changed=1, rtol=2e-3)
    assert ops(out) == ["Cast", "LayerNormalization", "Cast"]


def test_a_cast_read_elsewhere_stays_for_its_reader():
    f = Formula()
    y = half(f, np.float16, np.float16, cast_read=True)
    proto = f.model(SHAPE, *y, types={"x": np.float16, y[0]: np.float16})
    out = check_fires(LayerNorm(), proto, changed=1, rtol=2e-3)
    assert sorted(ops(out)) == ["Cast", "Exp", "LayerNormalization"]
    node = next(n for n in out.graph.node if n.op_type == "LayerNormalization")
    assert node.input[0] == "x"


def test_a_cast_that_undoes_nothing_leaves_the_affine_part():
    f = Formula()
    y = f.op("Mul", f.op("Cast", normed(f), to=TensorProto.FLOAT16), f.const(SCALE, np.float16))
    proto = f.model(SHAPE, y, types={y: np.float16})
    out = check_fires(LayerNorm(), proto, changed=1, rtol=2e-3)
    assert ops(out) == ["LayerNormalization", "Cast", "Mul"]


def test_bfloat16_becomes_the_operator():
    # onnxruntime's CPU provider runs neither form, so only the graph is looked at.
    f = Formula(dtype=ml_dtypes.bfloat16)
    out, reports, _ = apply(LayerNorm(), f.model(SHAPE, layernorm(f)))
    assert reports[0].changed == 1 and ops(out) == ["LayerNormalization"]


def test_digits_vit_has_none_left():
    graph = onnx_io.load(ROOT / "models" / "digits" / "digits_vit.onnx")
    assert onnx_io.upgrade_opset(graph, 21) is None
    onnx_io.infer_shapes(graph)
    out = check_fires(LayerNorm(), onnx_io.to_proto(graph), changed=7)
    assert not {"Sqrt", "Pow", "Sub"} & set(ops(out))


def test_text_recogniser_has_none_left():
    graph = onnx_io.load(shared("models", "ppocrv6_rec_small.onnx"))
    assert onnx_io.upgrade_opset(graph, 21) is None
    for node in list(graph.nodes("Identity")):
        if not node.outputs[0].is_graph_output():
            graph.replace(node.outputs[0], node.inputs[0])
            graph.remove(node)
    onnx_io.infer_shapes(graph)
    report = LayerNorm().run(graph, None)
    assert report.changed == 5 and not list(graph.nodes("Sqrt"))
