import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from harness import (
    apply,
    assert_close,
    check_fires,
    check_stays,
    interface,
    model,
    ops,
    random_feeds,
    run_reference,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.context import Context
from qgraph.encoding import Spec
from qgraph.errors import DataError, UsageError
from qgraph.passes.half import Half
from qgraph.passes.half_choose import Limits
from qgraph.target import Target, target

F16 = 10  # onnx.TensorProto.FLOAT16
BF16 = 16
RTOL = 4e-3  # a few float16 roundings (2^-11 each) on top of each other


def rand(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def casts(proto):
    """(input, output, type) of every Cast."""
    return [
        (n.input[0], n.output[0], n.attribute[0].i) for n in proto.graph.node if n.op_type == "Cast"
    ]


def types(proto):
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    return {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}


def reasons(reports):
    return {r.where: r.reason for r in reports[-1].refused}


MLP = """g (float[N, 8] x) => (float[N, 4] y) {
    a = MatMul(x, w)
    b = Add(a, c)
    d = Relu(b)
    y = Gemm(d, v, e)
}"""
MLP_WEIGHTS = {"w": rand(8, 16), "c": rand(16), "v": rand(16, 4, seed=1), "e": rand(4)}


def test_whole_graph_with_one_cast_in_and_one_out():
    out = check_fires(Half(), model(MLP, MLP_WEIGHTS), changed=4, rtol=RTOL)
    assert ops(out) == ["Cast", "MatMul", "Add", "Relu", "Gemm", "Cast"]
    assert {t.data_type for t in out.graph.initializer} == {F16}
    assert [c[2] for c in casts(out)] == [F16, 1]


def test_values_are_those_of_numpy_in_float16():
    proto = model("g (float[N,8] x) => (float[N,8] y) { y = Mul(x, w) }", {"w": rand(8)})
    out, _, _ = apply(Half(), proto)
    x = rand(5, 8)
    want = (x.astype(np.float16) * rand(8).astype(np.float16)).astype(np.float32)
    np.testing.assert_allclose(run_reference(out, {"x": x})["y"], want, rtol=1e-3)
    assert np.abs(run_reference(out, {"x": x})["y"] - x * rand(8)).max() > 0


def test_bfloat16_without_a_target_computes_in_bfloat16():
    proto = model(MLP, MLP_WEIGHTS, opset=22)
    out, reports, _ = apply(Half(dtype="bfloat16"), proto)
    assert reports[-1].changed == 4 and interface(out) == interface(proto)
    assert {t.data_type for t in out.graph.initializer} == {BF16}
    assert [c[2] for c in casts(out)] == [BF16, 1]


def test_an_operator_without_the_type_at_the_opset_stays():
    text = "g (float[1,1,4,4] x) => (float[1,1,2,2] y) { y = Conv(x, w) }"
    proto = model(text, {"w": rand(1, 1, 3, 3)}, opset=21)
    reports = check_stays(Half(dtype="bfloat16"), proto, "takes no bfloat16 at opset 21")
    assert reports[-1].refused[0].where == "y_Conv"


def test_bfloat16_on_the_cpu_only_stores_weights():
    proto = model(MLP, {**MLP_WEIGHTS, "w": rand(8, 256), "c": rand(256), "v": rand(256, 4)})
    pass_ = Half(dtype="bfloat16")
    context = Context(target=target("cpu"))
    out = check_fires(pass_, proto, changed=3, rtol=2e-2, context=context)
    assert ops(out).count("Cast") == 3 and all(c[2] == 1 for c in casts(out))
    kinds = {t.name: t.data_type for t in out.graph.initializer}
    assert sorted(kinds.values()) == [1, BF16, BF16, BF16]
    stored = next(t for t in out.graph.initializer if t.name == "w_bfloat16")
    got = onnx.numpy_helper.to_array(stored).astype(np.float32)
    np.testing.assert_array_equal(got, rand(8, 256).astype(ml_dtypes.bfloat16).astype(np.float32))


def test_weights_only_rounds_weights_and_nothing_else():
    proto = model(MLP, {**MLP_WEIGHTS, "w": rand(8, 64), "c": rand(64), "v": rand(64, 4)})
    out = check_fires(Half(weights_only=True), proto, changed=2, rtol=RTOL)
    rounded = {"w": rand(8, 64).astype(np.float16), "v": rand(64, 4).astype(np.float16)}
    same = model(
        MLP,
        {
            "c": rand(64),
            "e": MLP_WEIGHTS["e"],
            **{k: v.astype(np.float32) for k, v in rounded.items()},
        },
    )
    feeds = random_feeds(proto)
    assert_close(run_reference(same, feeds), run_reference(out, feeds), rtol=1e-6)


def test_weights_only_leaves_scales_outputs_and_custom_operators_alone():
    proto = model(
        """<ir_version: 10, opset_import: ["" : 21, "my" : 1]>
        g (float[512] x) => (float[512] y, float[512] k, float[512] z) {
            q = QuantizeLinear <axis = 0> (x, s, zp)
            y = DequantizeLinear <axis = 0> (q, s, zp)
            k = Identity(o)
            z = my.Thing(x, m)
        }""",
        {"s": np.abs(rand(512)) + 1, "zp": np.zeros(512, np.int8), "o": rand(512), "m": rand(512)},
    )
    out, reports, _ = apply(Half(weights_only=True), proto)
    kinds = {t.name: t.data_type for t in out.graph.initializer}
    assert kinds["s"] == 1 and kinds["m"] == 1 and kinds["o_float16"] == F16
    assert "part of a quantized model" in reasons(reports)["s"]
    assert "custom operator" in reasons(reports)["m"]


# -- ranges ------------------------------------------------------------------------------------


def test_a_constant_that_overflows_keeps_its_node_in_float32():
    text = "g (float[N,4] x) => (float[N,4] y) { a = Relu(x)  b = Mul(a, big)  c = Mul(b, small)  y = Relu(c) }"
    proto = model(text, {"big": np.float32(1e6), "small": np.float32(1e-3)})
    out, reports, graph = apply(Half(), proto)
    assert reasons(reports) == {"b_Mul": "its input 'big' reaches 1e+06, more than float16's 65504"}
    kind = types(out)
    assert kind["a"] == F16 and kind["b"] == 1
    assert graph.facts.plan.nodes["b_Mul"][0] == "float"
    assert graph.facts.plan.nodes["c_Mul"] == ("fp16", "computes in float16")
    feeds = random_feeds(proto)
    assert_close(run_reference(proto, feeds), run_reference(out, feeds), rtol=RTOL)


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (65504.0, True),
        (65520.0, False),
        (-7e4, False),
        (np.inf, True),
        (-np.inf, True),
        (0.0, True),
        (2.0**-14, True),
        (1e-5, False),
        (-1e-9, False),
    ],
)
def test_limits_of_float16(value, fits):
    reason = Limits("float16").misfit(np.array([value, 0.0], np.float32))
    assert (reason is None) is fits, reason


def test_limits_of_bfloat16():
    limits = Limits("bfloat16")
    assert limits.misfit(np.array([3.3e38], np.float32)) is None
    assert limits.misfit(np.array([-np.finfo(np.float32).max])) is not None
    assert limits.misfit(np.array([1e-30], np.float32)) is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_what_fits_never_becomes_infinite_or_vanishes_whole(values):
    array = np.array(values, np.float32)
    for dtype in ("float16", "bfloat16"):
        if Limits(dtype).misfit(array) is None:
            with np.errstate(over="ignore"):
                half = array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
            assert np.isfinite(half.astype(np.float32)).all()
            assert bool(half.astype(np.float32).any()) == bool(array.any())


def test_activations_that_overflow_on_the_data_stay_in_float32():
    text = "g (float[N,4] x) => (float[N,4] y) { a = Mul(x, k)  b = Mul(a, a)  y = Mul(b, t) }"
    proto = model(text, {"k": np.float32(1e3), "t": np.float32(1e-3)})
    data = [{"x": np.full((1, 4), 0.5, np.float32)}, {"x": np.full((1, 4), -2.0, np.float32)}]
    out, reports, _ = apply(Half(), proto, Context(data=data))
    assert set(reasons(reports)) == {"b_Mul", "y_Mul"}
    assert "result 'b' reaches 4e+06" in reasons(reports)["b_Mul"]
    assert not reports[-1].warnings
    kind = types(out)
    assert kind["a"] == F16 and kind["b"] == 1
    for feeds in data:
        assert_close(run_reference(proto, feeds), run_reference(out, feeds), rtol=RTOL)


def test_ranges_that_are_trusted_are_not_looked_at_again():
    text = "g (float[N,4] x) => (float[N,4] y) { a = Mul(x, x)  b = Mul(a, k)  y = Sqrt(b) }"
    data = [{"x": np.full((1, 4), 1000.0, np.float32)}]  # a = 10^6
    proto = model(text, {"k": np.float32(1e6)})
    out, reports, _ = apply(Half(trusted=True), proto, Context(data=data))
    # Constants are: that is what no earlier look can have missed.
    assert set(reasons(reports)) == {"b_Mul"} and types(out)["a"] == F16
    assert not reports[-1].warnings


def test_codes_are_in_half_where_the_targets_kernels_take_it():
    """TensorRT's Q/DQ takes and gives float16; that of onnxruntime's CPU kernels stays float32."""
    text = """g (float[N,4] x) => (float[N,4] y) {
        h = Tanh(x)
        q = QuantizeLinear(h, s, z)
        d = DequantizeLinear(q, s, z)
        a = MatMul(d, w)
        y = Tanh(a)
    }"""
    codes = {"s": np.float32(0.1), "z": np.int8(0), "w": rand(4, 4)}
    for name, kind in (("tensorrt", F16), ("cpu", 1)):
        context = Context(target=target(name), data=[{"x": rand(2, 4)}])
        out, _, _ = apply(Half(), model(text, codes), context)
        assert types(out)["h"] == types(out)["d"] == types(out)["a"] == kind
        assert len(casts(out)) == 2


def test_headroom_decides_borderline_activations():
    text = "g (float[N,4] x) => (float[N,4] y) { a = Mul(x, x)  y = Sqrt(a) }"
    data = [{"x": np.full((1, 4), 200.0, np.float32)}]  # a = 40000
    proto = model(text)
    assert "times 2" in str(
        check_stays(Half(), proto, "times 2", context=Context(data=data))[-1].refused
    )
    check_fires(
        Half(headroom=1.5),
        proto,
        changed=2,
        rtol=RTOL,
        feeds=data[0],
        context=Context(data=data),
    )


def test_activations_that_vanish_on_the_data_stay_in_float32():
    text = "g (float[N,4] x) => (float[N,4] y) { a = Mul(x, x)  b = Mul(a, a)  y = Sqrt(b) }"
    data = [{"x": np.full((1, 4), 1e-2, np.float32)}]
    out, reports, _ = apply(Half(), model(text), Context(data=data))
    assert "is at most 1e-08" in reasons(reports)["b_Mul"]
    assert_close(run_reference(model(text), data[0]), run_reference(out, data[0]), rtol=RTOL)


def test_without_data_the_report_warns_and_bfloat16_does_not():
    _, reports, _ = apply(Half(), model(MLP, MLP_WEIGHTS))
    assert reports[-1].warnings == [
        "no calibration data: only constants were checked for overflow in float16"
    ]
    _, reports, _ = apply(Half(dtype="bfloat16"), model(MLP, MLP_WEIGHTS, opset=22))
    assert reports[-1].warnings == []


def test_an_infinite_mask_in_the_data_stays_in_float32_and_nan_is_refused():
    text = "g (float[N,4] x, float[N,4] m) => (float[N,4] y) { a = Mul(x, k)  b = Add(a, m)  y = Softmax(b) }"
    proto = model(text, {"k": np.float32(0.5)})
    mask = np.array([[0, 0, -np.inf, -np.inf]], np.float32)
    feeds = {"x": rand(1, 4), "m": mask}
    out, reports, _ = apply(Half(), proto, Context(data=[feeds]))
    assert set(reasons(reports)) == {"b_Add", "y_Softmax"}
    assert_close(run_reference(proto, feeds), run_reference(out, feeds), rtol=RTOL)
    bad = {"x": np.array([[1, np.nan, 2, 3]], np.float32), "m": np.zeros((1, 4), np.float32)}
    with pytest.raises(DataError, match="sample 0 makes .* NaN"):
        apply(Half(), proto, Context(data=[bad]))


def test_an_epsilon_that_would_vanish_keeps_its_add_but_a_tiny_bias_does_not():
    text = "g (float[N,4] x) => (float[N,4] y) { v = Mul(x, x)  w = Add(v, eps)  y = Sqrt(w) }"
    _, reports, _ = apply(Half(), model(text, {"eps": np.float32(1e-12)}))
    assert set(reasons(reports)) == {"w_Add"}
    out = check_fires(
        Half(), model(MLP, {**MLP_WEIGHTS, "e": np.full(4, 1e-9, np.float32)}), rtol=RTOL
    )
    assert ops(out).count("Cast") == 2
    _, reports, _ = apply(Half(), model(MLP, {**MLP_WEIGHTS, "e": np.full(4, 1e9, np.float32)}))
    assert set(reasons(reports)) == {"y_Gemm"}


# -- casts -------------------------------------------------------------------------------------


def test_each_value_is_cast_once_per_direction_however_many_read_it():
    text = """g (float[N,4] x) => (float[N,4] y, float[N,4] z, float[N,4] p, float[N,4] q) {
        a = Relu(x)
        y = Neg(x)
        p = Mul(a, big)
        q = Add(a, big)
        z = Exp(a)
    }"""
    out, _, _ = apply(Half(), model(text, {"big": np.float32(1e6)}))
    found = casts(out)
    assert len({(c[0], c[2]) for c in found}) == len(found)
    assert [c for c in found if c[0] == "x"] == [("x", found[0][1], F16)]
    assert sum(1 for c in found if c[2] == 1 and c[0] == "a") == 1
    produced = {c[1] for c in found}
    assert not any(c[0] in produced for c in found), "a Cast reads a Cast"


def test_a_graph_output_that_half_nodes_read_keeps_its_name_and_type():
    text = "g (float[N,4] x) => (float[N,4] a, float[N,4] y) { a = Relu(x)  y = Exp(a) }"
    out = check_fires(Half(), model(text), changed=2, rtol=RTOL)
    exp = next(n for n in out.graph.node if n.op_type == "Exp")
    relu = next(n for n in out.graph.node if n.op_type == "Relu")
    assert exp.input[0] == relu.output[0]


def test_the_models_own_casts_vanish_where_both_sides_are_half():
    text = """g (float[N,4] x) => (float[N,4] y) {
        a = Relu(x)
        h = Cast <to = 10> (a)
        i = Exp(h)
        f = Cast <to = 1> (i)
        y = Neg(f)
    }"""
    out = check_fires(Half(), model(text), rtol=RTOL)
    assert ops(out) == ["Cast", "Relu", "Exp", "Neg", "Cast"]


def test_int_to_float_casts_make_half_directly():
    text = "g (int64[N,4] x) => (float[N,4] y) { a = Cast <to = 1> (x)  y = Exp(a) }"
    out = check_fires(Half(), model(text), changed=2, rtol=RTOL)
    assert ops(out) == ["Cast", "Exp", "Cast"] and [c[2] for c in casts(out)] == [F16, 1]


def test_constant_of_shape_makes_half_and_constant_nodes_are_converted():
    text = """g (float[N,4] x, int64[2] s) => (float[a,b] y) {
        f = ConstantOfShape <value = float[1] {2.5}> (s)
        k = Constant <value = float[1] {0.5}> ()
        g = Mul(f, k)
        h = ReduceSum <keepdims = 0> (x)
        y = Add(g, h)
    }"""
    feeds = {"x": rand(2, 4), "s": np.array([2, 3])}
    out = check_fires(Half(), model(text), feeds=feeds, rtol=RTOL)
    assert types(out)["f"] == F16
    assert [t.data_type for t in out.graph.initializer] == [F16]
    assert "Constant" not in ops(out)


def test_resize_keeps_its_float32_scales():
    text = """g (float[1,1,2,2] x) => (float[1,1,4,4] y) {
        a = Relu(x)
        y = Resize <mode = "nearest"> (a, , scales)
    }"""
    out = check_fires(
        Half(),
        model(text, {"scales": np.array([1, 1, 2, 2], np.float32)}),
        changed=2,
        rtol=RTOL,
    )
    assert [t.data_type for t in out.graph.initializer] == [1]


def test_range_and_random_numbers_stay():
    text = """g (float a, float[N] x) => (float[M] y, float[3] r) {
        s = Relu(a)
        y = Range(zero, s, one)
        n = RandomNormal <shape = [3]> ()
        r = Neg(n)
    }"""
    proto = model(text, {"zero": np.float32(0), "one": np.float32(1)})
    out, reports, _ = apply(Half(), proto)
    assert "takes no float16 at opset 21" in reasons(reports)["y_Range"]
    assert "random numbers" in reasons(reports)["n_RandomNormal"]
    feeds = {"a": np.array(5, np.float32), "x": rand(1)}
    np.testing.assert_array_equal(run_reference(out, feeds)["y"], np.arange(5, dtype=np.float32))


def test_movement_between_float32_nodes_stays_and_else_follows():
    text = """g (float[2,4] x) => (float[4,2] y, float[8] z) {
        a = Mul(x, big)
        b = Transpose(a)
        c = Reshape(b, s)
        z = Mul(c, big)
        y = Transpose(x)
    }"""
    weights = {"big": np.float32(1e6), "s": np.array([8])}
    check_stays(Half(), model(text, weights), "reaches 1e+06")
    text = text.replace("y = Transpose(x)", "t = Transpose(x)  y = Exp(t)")
    out, reports, graph = apply(Half(), model(text, weights))
    assert reports[-1].changed == 2
    assert graph.facts.plan.nodes["c_Reshape"][1] == "moves data between float32 nodes only"
    assert types(out)["t"] == F16


def test_nodes_without_float_results_take_what_is_there():
    text = """g (float[N,4] x) => (int64[M] s, int64[K,1] i, bool[N,4] c, float[N,4] y) {
        s = Shape(x)
        y = Exp(x)
        i = ArgMax <axis = 1> (y)
        c = Greater(y, x)
    }"""
    out, _, _ = apply(Half(), model(text))
    shape, arg, greater = (
        next(n for n in out.graph.node if n.op_type == op) for op in ("Shape", "ArgMax", "Greater")
    )
    kind = types(out)
    assert shape.input[0] == "x" and kind[arg.input[0]] == F16
    assert list(greater.input) == ["y", "x"]


# -- what stays --------------------------------------------------------------------------------


def test_excluded_by_name_or_operator():
    proto = model(MLP, MLP_WEIGHTS)
    out, reports, _ = apply(Half(), proto, Context(exclude=("y_*", "Relu")))
    assert set(reasons(reports)) == {"y_Gemm", "d_Relu"}
    assert types(out)["b"] == F16 and types(out)["d"] == 1


def test_operators_that_the_target_lacks():
    limited = Target(
        "t", "", (), (), "", Spec(), Spec(), (), half_ops={"fp16": frozenset({"Gemm"})}
    )
    _, reports, _ = apply(Half(), model(MLP, MLP_WEIGHTS), Context(target=limited))
    assert reasons(reports) == {"y_Gemm": "target t has no float16 Gemm"}


def test_bodies_stay_in_float32_and_outer_values_reach_them_in_float32():
    text = """g (bool c, float[2] x) => (float[2] y) {
        a = Relu(x)
        b = If (c) <
            then_branch = then () => (float[2] t) { t = Mul(a, k) },
            else_branch = other () => (float[2] e) { e = Neg(a) }
        >
        y = Exp(b)
    }"""
    proto = model(text, {"k": np.array([1e6, 1e-6], np.float32)})
    x = np.array([1e-3, 2.0], np.float32)
    out, reports, _ = apply(Half(), proto)
    assert "bodies stay in float32" in reasons(reports)["b_If"]
    assert reports[-1].changed == 2
    feeds = {"c": np.array(False), "x": x}
    assert_close(run_reference(proto, feeds), run_reference(out, feeds), rtol=RTOL)


def test_custom_operators_are_barriers():
    text = """<ir_version: 10, opset_import: ["" : 21, "my" : 1]>
    g (float[2] x) => (float[2] y) { a = Relu(x)  float[2] b = my.Thing(a)  y = Exp(b) }"""
    proto = model(text.replace("float[2] b =", "b ="))
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("b", 1, [2]))
    out, reports, _ = apply(Half(), proto)
    assert reasons(reports)["b_Thing"] == "custom operator of domain 'my'"
    assert ops(out) == ["Cast", "Relu", "Cast", "Thing", "Cast", "Exp", "Cast"]


def test_quantized_parts_stay_and_float_parts_are_converted():
    text = """g (float[2,4] x) => (float[2,4] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        a = MatMul(d, w)
        p = QuantizeLinear(a, s, z)
        e = DequantizeLinear(p, s, z)
        b = Relu(e)
        y = Exp(b)
    }"""
    proto = model(text, {"s": np.float32(0.1), "z": np.uint8(128), "w": rand(4, 4)})
    out, reports, _ = apply(Half(), proto)
    assert "integers" in reasons(reports)["a_MatMul"] and "integers" in reasons(reports)["b_Relu"]
    assert reports[-1].changed == 1
    assert {t.data_type for t in out.graph.initializer} == {1, 2}


def test_a_float16_model_is_left_alone():
    text = "g (float16[N,4] x) => (float16[N,4] y) { a = Relu(x)  y = Exp(a) }"
    reports = check_stays(Half(), model(text))
    assert not reports[-1].refused


def test_inputs_with_a_default_are_not_observed_but_cast():
    proto = model(
        "g (float[N,4] x, float[4] k) => (float[N,4] y) { y = Mul(x, k) }", {"k": rand(4)}
    )
    data = [{"x": rand(2, 4)}]
    out, _, _ = apply(Half(), proto, Context(data=data))
    other = {"x": rand(2, 4), "k": rand(4, seed=9)}
    assert_close(run_reference(proto, other), run_reference(out, other), rtol=RTOL)


def test_shared_constant_serves_both_precisions():
    text = "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { y = Mul(x, k)  z = Sub(x, k) }"
    out, _, _ = apply(Half(), model(text, {"k": rand(4)}), Context(exclude=("Sub",)))
    assert sorted(t.data_type for t in out.graph.initializer) == [1, F16]


def test_wrong_options():
    with pytest.raises(UsageError, match="half"):
        Half.with_options({"dtype": "float8"})
    with pytest.raises(UsageError, match="headroom"):
        Half.with_options({"headroom": 0.5})


def runnable(proto, feeds):
    """Results, or None if onnx's checker refuses its own test or onnxruntime the operator."""
    try:
        onnx.checker.check_model(proto, full_check=True)
        return run_reference(proto, feeds)
    except Exception:  # noqa: BLE001 - any failure means that there is nothing to compare with
        return None


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_float16_node_tests_of_onnx_run_on_onnxruntime():
    # A sample of onnx's own models, one an operator, end to end: convert, check, run, compare.
    from onnx.backend.test.case.node import collect_testcases

    done, seen = 0, set()
    context = Context(target=target("cpu"))
    for case in collect_testcases(None):
        proto = case.model
        op_type = proto.graph.node[0].op_type
        if op_type in seen or len(proto.graph.node) > 1 or not case.data_sets:
            continue
        if {i.type.tensor_type.elem_type for i in proto.graph.input} != {1}:
            continue
        seen.add(op_type)
        feeds = {i.name: x for i, x in zip(proto.graph.input, case.data_sets[0][0], strict=False)}
        want = runnable(proto, feeds)
        if want is None:
            continue
        out, reports, _ = apply(Half(), proto, context)
        if not reports[-1].changed:
            continue
        done += 1
        got = run_reference(out, feeds)
        for name, array in want.items():
            assert got[name].shape == array.shape and got[name].dtype == array.dtype, op_type
            if array.dtype.kind == "f":
                span = max(float(np.abs(array[np.isfinite(array)]).max(initial=0.0)), 1e-3)
                error = np.abs(np.where(np.isfinite(array), got[name] - array, 0)).max(initial=0.0)
                assert error <= 1e-2 * span, f"{op_type} {name}: {error} of {span}"
    assert done >= 50


def test_weights_only_reaches_into_bodies():
    text = """g (bool c, float[4,64] x) => (float[4,8] y) {
        y = If (c) <
            then_branch = t () => (float[4,8] p) {
                w = Constant <value = float[64,8] {WEIGHTS}> ()
                p = MatMul(x, w)
            },
            else_branch = e () => (float[4,8] q) { q = MatMul(x, v) }
        >
    }"""
    values = rand(64, 8)
    text = text.replace("WEIGHTS", ", ".join(f"{v:.9g}" for v in values.reshape(-1)))
    proto = model(text, {"v": rand(64, 8, seed=1)})
    out, reports, _ = apply(Half(weights_only=True), proto)
    assert reports[-1].changed == 2
    assert sorted(t.data_type for t in out.graph.initializer) == [F16, F16]
    for flag in (True, False):
        feeds = {"c": np.array(flag), "x": rand(4, 64, seed=2)}
        assert_close(run_reference(proto, feeds), run_reference(out, feeds), rtol=RTOL)
