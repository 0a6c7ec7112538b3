import numpy as np
import onnx
import pytest
from harness import apply, check_stays, interface, model, ops, random_feeds, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.errors import UsageError
from qgraph.passes.dynamic_int8 import DynamicInt8
from qgraph.runtime import backend
from qgraph.runtime.executed import executed_ops

SMALL = DynamicInt8(min_elements=1)


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantize_rows(matrix):
    """Symmetric int8 per row with codes -127..127: (codes, scale [rows, 1]), in float64."""
    scale = np.abs(matrix).max(axis=1, keepdims=True).astype(np.float64) / 127
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.clip(np.rint(matrix / scale), -127, 127), scale.astype(np.float64)


def dynamic_matmul(x, weight):
    """What DynamicQuantizeLinear and an integer product give, in float64."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / np.float32(255)) if high > low else np.float32(1)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    rows, steps = quantize_rows(weight.T)
    return (codes.astype(np.float64) @ rows.T) * float(scale) * steps.T


def kernels(proto, feeds):
    found = executed_ops(proto.SerializeToString(), feeds, backend("onnxruntime-cpu"))
    return sorted(each.op_type for each in found)


def sqnr(want, got):
    return 10 * np.log10((want.astype(np.float64) ** 2).sum() / ((want - got) ** 2).sum())


def check(proto, changed, pass_=SMALL, context=None, floor=35.0, feeds=None):
    out, reports, graph = apply(pass_, proto, context)
    assert reports[-1].changed == changed, reports[-1].refused
    assert interface(out) == interface(proto)
    feeds = feeds or random_feeds(proto, size=16)
    want, got = run_reference(proto, feeds), run_reference(out, feeds)
    for name in want:
        assert want[name].shape == got[name].shape
        assert np.inf > sqnr(want[name], got[name]) > floor, name
    again, reports, _ = apply(pass_, out, context)
    assert reports[-1].changed == 0
    assert ops(again) == ops(out)
    return out, graph


MATMUL = "g (float[B,T,48] x) => (float[B,T,64] y) { y = MatMul(x, w) }"


def test_matmul_has_the_numbers_of_the_definition():
    w, x = rand(48, 64), rand(2, 5, 48, seed=3)
    out, _ = check(model(MATMUL, {"w": w}), 1)
    want = dynamic_matmul(x, w)
    np.testing.assert_allclose(run_reference(out, {"x": x})["y"], want, rtol=1e-5, atol=1e-5)
    (by_onnx,) = ReferenceEvaluator(out).run(None, {"x": x})
    np.testing.assert_allclose(by_onnx, want, rtol=1e-5, atol=1e-5)


def test_matmul_becomes_one_kernel():
    proto = model(
        MATMUL.replace("y = MatMul(x, w)", "m = MatMul(x, w)  y = Add(m, b)"),
        {"w": rand(48, 64), "b": rand(64)},
    )
    out, _ = check(proto, 1)
    assert kernels(out, random_feeds(proto)) == ["DynamicQuantizeMatMul"]
    sizes = {t.name: t.data_type for t in out.graph.initializer}
    assert sizes == {"w_codes": onnx.TensorProto.INT8, "w_scale": 1, "b": 1}


def test_readers_of_one_value_share_one_dynamic_quantize_linear():
    text = """g (float[B,48] x) => (float[B,64] a, float[B,64] b, float[B,64] c) {
        r = Relu(x)
        a = MatMul(r, u)
        b = MatMul(r, v)
        c = Gemm(r, w)
    }"""
    proto = model(text, {"u": rand(48, 64), "v": rand(48, 64, seed=1), "w": rand(48, 64, seed=2)})
    out, _ = check(proto, 3)
    assert ops(out).count("DynamicQuantizeLinear") == 1
    assert kernels(out, random_feeds(proto)) == [
        "DynamicQuantizeLinear",
        *["MatMulIntegerToFloat"] * 3,
        "Relu",
    ]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (40,), (1, 40), (1,), ()])
def test_gemm_is_normalised(transposed, bias):
    w = rand(40, 32) if transposed else rand(32, 40)
    inputs = "x, w" if bias is None else "x, w, b"
    text = f"g (float[N,32] x) => (float[N,40] y) {{ y = Gemm<transB = {transposed}>({inputs}) }}"
    weights = {"w": w} if bias is None else {"w": w, "b": np.asarray(rand(*bias))}
    proto = model(text, weights)
    out, _ = check(proto, 1)
    x = rand(4, 32, seed=5)
    want = dynamic_matmul(x, w.T if transposed else w) + weights.get("b", 0)
    np.testing.assert_allclose(run_reference(out, {"x": x})["y"], want, rtol=1e-5, atol=1e-5)


def test_gemm_with_a_computed_bias():
    text = "g (float[4,32] x, float[4,40] c) => (float[4,40] y) { y = Gemm(x, w, c) }"
    check(model(text, {"w": rand(32, 40)}), 1)


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ("alpha = 2.0", "Gemm with alpha = 2"),
        ("beta = 0.5", "Gemm with beta = 0.5"),
        ("transA = 1", "Gemm with transA = 1"),
    ],
)
def test_gemm_refused(attribute, reason):
    text = f"g (float[32,32] x) => (float[32,40] y) {{ y = Gemm<{attribute}>(x, w, b) }}"
    check_stays(SMALL, model(text, {"w": rand(32, 40), "b": rand(40)}), reason)


def test_beta_means_nothing_without_a_bias():
    text = "g (float[N,32] x) => (float[N,40] y) { y = Gemm<beta = 0.5>(x, w) }"
    check(model(text, {"w": rand(32, 40)}), 1)


def test_a_weight_of_several_nodes_is_quantized_once_per_orientation():
    text = """g (float[N,32] x) => (float[N,32] a, float[N,32] b, float[N,32] c) {
        a = MatMul(x, w)
        r = Relu(a)
        b = MatMul(r, w)
        c = Gemm<transB = 1>(x, w)
    }"""
    out, _ = check(model(text, {"w": rand(32, 32)}), 3, floor=30)
    codes = [t for t in out.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len(codes) == 2
    straight, turned = map(onnx.numpy_helper.to_array, codes)
    assert not np.array_equal(straight, turned.T)  # scales run along different axes


def test_a_weight_in_a_constant_node_goes_away():
    proto = model(MATMUL, {"w": rand(48, 64)})
    tensor = proto.graph.initializer.pop()
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=tensor))
    out, _ = check(proto, 1)
    assert "Constant" not in ops(out) and len(out.graph.initializer) == 2


def test_float_readers_keep_the_weight():
    text = (
        "g (float[32,32] x) => (float[32,32] y, float[32,32] z) { y = MatMul(x, w)  z = Add(x, w) }"
    )
    out, _, _ = apply(SMALL, model(text, {"w": rand(32, 32)}))
    assert {t.name for t in out.graph.initializer} == {"w", "w_codes", "w_scale"}


@pytest.mark.parametrize(
    ("text", "weights", "reason"),
    [
        (
            "g (float[4,32] x, float[32,32] w) => (float[4,32] y) { y = MatMul(x, w) }",
            {},
            "both operands are activations",
        ),
        (
            "g (float[32,32] x) => (float[32,32] y) { y = MatMul(w, x) }",
            {"w": rand(32, 32)},
            "its constant is the first operand",
        ),
        (
            "g (float[4,32] x) => (float[2,4,32] y) { y = MatMul(x, w) }",
            {"w": rand(2, 32, 32)},
            "its weight has 3 axes, not 2",
        ),
        (
            "g (float[4,31] x) => (float[4,64] y) { y = MatMul(x, w) }",
            {"w": rand(31, 64)},
            "its weight [31, 64] is too small to be faster in int8",
        ),
        (
            "g (float[4,32] x) => (float[4,32] y) { y = MatMul(x, w) }",
            {"w": np.full((32, 32), np.nan, np.float32)},
            "its weight is not finite",
        ),
        (
            "g (float16[4,32] x) => (float16[4,32] y) { y = MatMul(x, w) }",
            {"w": rand(32, 32).astype(np.float16)},
            "its weight is float16, not float32",
        ),
        (
            "g (float[1,3,8,8] x) => (float[1,4,6,6] y) { y = Conv(x, w) }",
            {"w": rand(4, 3, 3, 3)},
            "ConvInteger is slower than its float Conv",
        ),
    ],
)
def test_refusals(text, weights, reason):
    check_stays(SMALL, model(text, weights), reason)


def test_small_weights_stay_by_default():
    check_stays(DynamicInt8(), model(MATMUL, {"w": rand(48, 64)}), "too small")
    check(
        model(MATMUL.replace("48", "128").replace("64", "128"), {"w": rand(128, 128)}),
        1,
        pass_=DynamicInt8(),
    )


def test_an_overridable_weight_is_no_constant():
    text = "g (float[4,32] x, float[32,32] w) => (float[4,32] y) { y = MatMul(x, w) }"
    check_stays(SMALL, model(text, {"w": rand(32, 32)}), "both operands are activations")


def test_excluded_by_name_and_operator():
    text = (
        """g (float[4,32] x) => (float[4,32] y) { a = MatMul(x, w)  b = Relu(a)  y = Gemm(b, w) }"""
    )
    proto = model(text, {"w": rand(32, 32)})
    check_stays(SMALL, proto, "excluded by 'y_*'", context=Context(exclude=("y_*", "MatMul")))
    _, graph = check(proto, 1, context=Context(exclude=("Gemm",)))
    assert graph.facts.plan.nodes["y_Gemm"] == ("float", "excluded by 'Gemm'")


def test_the_plan_explains_every_node():
    text = "g (float[4,32] x) => (float[4,32] y) { a = MatMul(x, w)  y = Relu(a) }"
    proto = model(text, {"w": rand(32, 32)})
    _, _, graph = apply(SMALL, proto)
    assert graph.facts.plan.nodes == {
        "a_MatMul": ("int8", "weights int8, activations uint8 at run time"),
        "y_Relu": ("float", "Relu stays in float"),
    }
    assert graph.facts.quantized is True


def test_bodies_are_left_alone():
    text = """g (bool c, float[4,32] x) => (float[4,32] y) {
        y = If (c) <
            then_branch = then () => (float[4,32] t) { t = MatMul(x, w) },
            else_branch = other () => (float[4,32] e) { e = Relu(x) }
        >
    }"""
    check_stays(SMALL, model(text, {"w": rand(32, 32)}), "inside the body of another node")


def test_zero_weights_and_zero_inputs_stay_exactly_zero():
    w = rand(48, 64)
    w[:, 3] = 0
    out, _, _ = apply(SMALL, model(MATMUL, {"w": w}))
    got = run_reference(out, {"x": rand(1, 2, 48)})["y"]
    assert (got[..., 3] == 0).all() and (got[..., 4] != 0).all()
    assert (run_reference(out, {"x": np.zeros((1, 2, 48), np.float32)})["y"] == 0).all()


def test_unknown_method():
    with pytest.raises(UsageError, match="weight quantizer 'rtm'.*did you mean 'rtn'"):
        DynamicInt8(method="rtm")


@settings(max_examples=40, deadline=None)
@given(st.integers(32, 70), st.integers(32, 70), st.integers(0, 10**6), st.floats(-3, 3))
def test_any_shape_has_the_numbers_of_the_definition(k, n, seed, shift):
    w, x = rand(k, n, seed=seed), rand(3, k, seed=seed + 1) + np.float32(shift)
    proto = model(f"g (float[N,{k}] x) => (float[N,{n}] y) {{ y = MatMul(x, w) }}", {"w": w})
    out, _, _ = apply(SMALL, proto)
    want = dynamic_matmul(x, w)
    got = run_reference(out, {"x": x})["y"]
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


# -- embeddings --------------------------------------------------------------------------------

EMBED = "g (int64[B,T] i) => (float[B,T,48] y) { y = Gather(t, i) }"
TABLES = DynamicInt8(embeddings=True, min_embedding=64)


def test_tables_are_stored_in_int8_with_a_scale_a_row():
    table = rand(20, 48) * np.logspace(-3, 3, 20, dtype=np.float32)[:, None]
    feeds = {"i": np.array([[0, 19, 5], [7, 7, -1]])}
    out, graph = check(model(EMBED, {"t": table}), 1, pass_=TABLES, feeds=feeds)
    codes, scale = quantize_rows(table)
    want = (codes * scale)[feeds["i"]]
    np.testing.assert_allclose(run_reference(out, feeds)["y"], want, rtol=1e-6)
    np.testing.assert_allclose(ReferenceEvaluator(out).run(None, feeds)[0], want, rtol=1e-6)
    assert {t.data_type for t in out.graph.initializer} == {1, onnx.TensorProto.INT8}
    assert graph.facts.plan.nodes["y_Gather"][0] == "int8"


def test_tables_stay_unless_asked_for_and_where_they_can_not_go():
    table = {"t": rand(20, 48)}
    _, reports, _ = apply(DynamicInt8(min_embedding=64), model(EMBED, table))
    assert reports[-1].changed == 0 and not reports[-1].refused
    check_stays(DynamicInt8(embeddings=True), model(EMBED, table), "960 elements is small")
    axis = "g (int64[B] i) => (float[20,B] y) { y = Gather<axis = 1>(t, i) }"
    check_stays(TABLES, model(axis, table), "does not gather rows")
    check_stays(TABLES, model(EMBED, table, opset=20, ir_version=9), "need opset 21")
    tied = "g (int64[B,T] i) => (float[B,T,48] y, float[20,48] z) { y = Gather(t, i)  z = Relu(t) }"
    check_stays(TABLES, model(tied, table), "also read by Relu z_Relu")
    check_stays(TABLES, model(EMBED, table), "excluded", context=Context(exclude=("Gather",)))


def test_two_gathers_share_one_table():
    text = "g (int64[B] i, int64[B] j) => (float[B,48] y, float[B,48] z) { y = Gather(t, i)  z = Gather(t, j) }"
    feeds = {"i": np.array([1, 2]), "j": np.array([3, 3])}
    out, _ = check(model(text, {"t": rand(20, 48)}), 2, pass_=TABLES, feeds=feeds)
    assert len(out.graph.initializer) == 2


def test_it_leaves_a_loadable_model_of_a_quarter_of_the_size(tmp_path):
    proto = model(MATMUL.replace("48", "256").replace("64", "512"), {"w": rand(256, 512)})
    _, _, graph = apply(DynamicInt8(), proto)
    (path,) = onnx_io.save(graph, tmp_path / "m.onnx")
    assert path.stat().st_size < 0.27 * len(proto.SerializeToString())
