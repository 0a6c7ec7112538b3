import numpy as np
import onnx
import pytest
from harness import interface, model, ops, run_reference
from quantsim import assert_simulated, quantize_model, samples, simulate

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.errors import UsageError
from qgraph.passes.insert_qdq import InsertQDQ
from qgraph.passes.plan import PlanQuantization
from qgraph.pipeline import Pipeline
from qgraph.runtime import backend
from qgraph.runtime.exact_products import overflows
from qgraph.runtime.executed import executed_ops
from qgraph.target import target


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def kernels(proto, feeds):
    """What onnxruntime ran, without the layout changes that it makes around convolutions."""
    found = executed_ops(proto.SerializeToString(), feeds, backend("onnxruntime-cpu"))
    return [e.op_type.removeprefix("Nhwc") for e in found if e.op_type != "Transpose"]


def check(text, weights, *, data=None, **options):
    """Quantize, compare with the simulation, and check what holds for every model."""
    proto = model(text, weights)
    case = quantize_model(proto, data, **options)
    assert interface(case.after) == interface(proto)
    producers = {o: n.op_type for n in case.after.graph.node for o in n.output}
    for value in case.after.graph.output:
        assert producers[value.name] not in ("QuantizeLinear", "DequantizeLinear"), value.name
    assert_simulated(case, proto)
    feeds = samples(proto, 1, seed=7)[0]
    want, got = run_reference(proto, feeds), run_reference(case.after, feeds)
    for name, array in want.items():
        noise = ((array - got[name]).astype(np.float64) ** 2).sum()
        assert noise > 0, f"{name} was not quantized at all"
        assert 10 * np.log10((array.astype(np.float64) ** 2).sum() / noise) > 20, name
    return case, kernels(case.after, feeds)


def quantizers(proto):
    """Inputs of QuantizeLinear nodes."""
    return [n.input[0] for n in proto.graph.node if n.op_type == "QuantizeLinear"]


CONV = {"w": rand(4, 3, 3, 3), "b": rand(4, seed=1), "v": rand(5, 4, 1, 1, seed=2)}
CONVS = """g (float[1,3,6,6] x) => (float[1,5,4,4] y) {
    a = Conv(x, w, b)
    r = Relu(a)
    c = Conv(r, v)
    y = Sigmoid(c)
}"""


def test_conv_relu_conv_runs_in_integers_with_the_relu_absorbed():
    case, ran = check(CONVS, CONV)
    assert ops(case.after).count("Relu") == 0
    assert ran == ["QuantizeLinear", "QLinearConv", "QLinearConv", "DequantizeLinear", "Sigmoid"]


@pytest.mark.parametrize(
    ("clip", "absorbed"),
    [
        ("Clip(a, zero, six)", True),
        ("Clip(a, zero)", True),
        ("Clip(a, neg, six)", True),
        ("Clip(a, half, six)", False),
    ],
)
def test_clips(clip, absorbed):
    # Weights are large, so that both bounds of each Clip are reached.
    weights = {
        **CONV,
        "w": CONV["w"] * 9,
        "zero": np.float32(0),
        "six": np.float32(6),
        "neg": np.float32(-1),
        "half": np.float32(0.5),
    }
    case, ran = check(CONVS.replace("Relu(a)", clip), weights)
    assert ("Clip" not in ops(case.after)) == absorbed
    assert ran.count("QLinearConv") == 2
    low, high = case.facts.ranges["r"]
    encoding = case.facts.encodings["r"]
    top = float(encoding.scale) * (255 - int(encoding.zero_point))
    assert top == pytest.approx(high, abs=0.51 * float(encoding.scale))
    assert low >= -1 and (high <= 6 or "six" not in clip)


def test_a_relu_whose_encoding_holds_negatives_stays():
    # Concat gives both operands one encoding, and the other one is negative.
    text = """g (float[1,3,6,6] x) => (float[1,5,4,4] y) {
        a = Conv(x, w, b)
        r = Relu(a)
        n = Conv(x, w2)
        k = Concat<axis = 1>(r, n)
        c = Conv(k, u)
        y = Sigmoid(c)
    }"""
    weights = {**CONV, "w2": rand(4, 3, 3, 3, seed=5), "u": rand(5, 8, 1, 1, seed=6)}
    case, ran = check(text, weights)
    assert ops(case.after).count("Relu") == 1
    assert case.facts.encodings["r"] is case.facts.encodings["n"] is case.facts.encodings["k"]
    assert ran.count("QLinearConv") == 3


def test_a_relu_with_two_readers_of_its_input_is_computed():
    text = """g (float[1,3,6,6] x) => (float[1,5,4,4] y, float[1,4,4,4] z) {
        a = Conv(x, w, b)
        r = Relu(a)
        z = Neg(a)
        c = Conv(r, v)
        y = Sigmoid(c)
    }"""
    case, _ = check(text, CONV)
    assert ops(case.after).count("Relu") == 1
    assert "a" in case.facts.plan.writes


def test_a_relu_that_is_a_graph_output_stays_in_float():
    text = """g (float[1,3,6,6] x) => (float[1,4,4,4] r, float[1,5,4,4] y) {
        a = Conv(x, w, b)
        r = Relu(a)
        c = Conv(r, v)
        y = Sigmoid(c)
    }"""
    case, ran = check_single_output(text, CONV, "y")
    assert ran.count("QLinearConv") == 1 and "Relu" in ops(case.after)
    assert case.facts.plan.nodes["a_Conv"] == (
        "float",
        "its result is a graph output, which stays in float",
    )


def test_residual_add_and_pooling_run_in_integers():
    text = """g (float[1,3,6,6] x) => (float[1,5] y) {
        a = Conv<pads = [1,1,1,1]>(x, w, b)
        r = Relu(a)
        d = Conv<pads = [1,1,1,1]>(r, w4)
        s = Add(d, r)
        t = Relu(s)
        p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(t)
        g = GlobalAveragePool(p)
        f = Flatten(g)
        y = Gemm<transB = 1>(f, k, kb)
    }"""
    weights = {**CONV, "w4": rand(4, 4, 3, 3, seed=3), "k": rand(5, 4, seed=4), "kb": rand(5)}
    case, ran = check(text, weights)
    assert ops(case.after).count("Relu") == 0
    assert ran[0] == "QuantizeLinear"
    inner = [op for op in ran[1:] if op not in ("Flatten", "Reshape")]
    assert inner == [
        "QLinearConv",
        "QLinearConv",
        "QLinearAdd",
        "MaxPool",
        "QLinearGlobalAveragePool",
        "QGemm",
    ]
    encodings = case.facts.encodings
    assert encodings["t"] is encodings["p"] and encodings["g"] is encodings["f"]
    assert case.facts.plan.absorbed["t_Relu"] == (0.0, float("inf"))


def test_layout_operators_pass_codes_through():
    text = """g (float[1,3,6,6] x) => (float[16,5] y) {
        a = Conv(x, w, b)
        t = Transpose<perm = [0,2,3,1]>(a)
        r = Reshape(t, shape)
        y = MatMul(r, k)
    }"""
    weights = {**CONV, "k": rand(4, 5, seed=3), "shape": np.array([16, 4])}
    case, ran = check(text, weights)
    encodings = case.facts.encodings
    assert encodings["a"] is encodings["t"] is encodings["r"]
    assert ran == ["QuantizeLinear", "QLinearConv", "Reshape", "MatMulIntegerToFloat"]


def test_a_tail_that_nobody_reads_in_integers_stays_in_float():
    text = """g (float[1,3,6,6] x) => (float[1,4,16] y) {
        a = Conv(x, w, b)
        r = Reshape(a, shape)
        y = Softmax(r)
    }"""
    case, ran = check(text, {**CONV, "shape": np.array([1, 4, 16])})
    assert case.facts.plan.nodes["r_Reshape"] == ("float", "its readers are in float")
    reshape = next(n for n in case.after.graph.node if n.op_type == "Reshape")
    producers = {o: n.op_type for n in case.after.graph.node for o in n.output}
    assert producers[reshape.input[0]] == "DequantizeLinear"
    assert sorted(ran) == sorted(
        ["QuantizeLinear", "QLinearConv", "DequantizeLinear", "Reshape", "Softmax"]
    )


def test_linear_layers_run_in_integers_end_to_end():
    text = """g (float[4,16] x) => (float[4,6] y) {
        a = Gemm(x, w, b)
        r = Relu(a)
        c = MatMul(r, v)
        d = Clip(c, lo, hi)
        y = Gemm<transB = 1>(d, u)
    }"""
    weights = {
        "w": rand(16, 12),
        "b": rand(12),
        "v": rand(12, 8, seed=1),
        "u": rand(6, 8, seed=2),
        "lo": np.float32(-4),
        "hi": np.float32(5),
    }
    case, ran = check(text, weights)
    assert ran == ["QuantizeLinear", "QGemm", "QLinearMatMul", "QGemm"]
    assert not {"Relu", "Clip"} & set(ops(case.after))


def test_a_linear_layer_read_in_float_keeps_its_float_result():
    text = """g (float[4,16] x) => (float[4,8] y, float[4,12] z) {
        a = Gemm(x, w, b)
        r = Relu(a)
        y = MatMul(r, v)
        z = Exp(r)
    }"""
    weights = {"w": rand(16, 12) * np.float32(0.2), "b": rand(12), "v": rand(12, 8, seed=1)}
    case, ran = check(text, weights)
    assert ran.count("QGemm") == 1 and "Relu" in ran
    assert "r" not in case.facts.plan.writes and ("y_MatMul", 0) in case.facts.plan.reads


def test_only_planned_reads_of_a_float_value_are_quantized():
    text = """g (float[1,3,6,6] x) => (float[1,4,4,4] y, float[1,3,6,6] z) {
        e = Exp(x)
        a = Conv(e, w, b)
        y = Sigmoid(a)
        z = Neg(e)
    }"""
    case, _ = check_single_output(text, CONV, "y")
    nodes = {n.op_type: n for n in case.after.graph.node}
    assert nodes["Neg"].input[0] == nodes["Exp"].output[0]
    assert nodes["Conv"].input[0] != nodes["Exp"].output[0]


def check_single_output(text, weights, name):
    proto = model(text, weights)
    case = quantize_model(proto)
    assert_simulated(case, proto)
    feeds = samples(proto, 1, seed=7)[0]
    want, got = run_reference(proto, feeds), run_reference(case.after, feeds)
    for key in want:
        assert (key == name) == bool(np.abs(want[key] - got[key]).max() > 0), key
    return case, kernels(case.after, feeds)


def test_all_readers_of_a_written_value_get_the_codes():
    text = """g (float[1,3,6,6] x) => (float[1,5,4,4] y, float[1,4,4,4] z) {
        a = Conv(x, w, b)
        c = Conv(a, v)
        y = Sigmoid(c)
        z = Exp(a)
    }"""
    weights = {**CONV, "w": CONV["w"] * np.float32(0.2)}
    case, _ = check(text, weights)
    producers = {o: n for n in case.after.graph.node for o in n.output}
    exp = next(n for n in case.after.graph.node if n.op_type == "Exp")
    assert producers[exp.input[0]].op_type == "DequantizeLinear"
    assert len([q for q in quantizers(case.after) if producers.get(q, exp).op_type == "Conv"]) == 2


def test_shared_weights_are_stored_once_and_scaled_apart_where_biases_differ():
    text = """g (float[1,4,6,6] x) => (float[1,4,6,6] y) {
        a = Conv(x, w, b)
        c = Conv(a, w)
        d = Conv(c, w, b)
        y = Sigmoid(d)
    }"""
    case, ran = check(text, {"w": rand(4, 4, 1, 1), "b": rand(4)})
    codes = [
        t
        for t in case.after.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4
    ]
    # onnxruntime can't make shared weights exact for CPUs without VNNI: they run in float there.
    assert len(codes) == 1 and ran.count("QLinearConv") == (0 if overflows() else 3)


def test_grouped_strided_and_one_dimensional_convolutions():
    text = """g (float[1,4,7,7] x) => (float[1,4,2,2] y) {
        a = Conv<group = 4, strides = [2,2], pads = [1,1,1,1]>(x, w)
        c = Conv<dilations = [2,2]>(a, v, b)
        y = Sigmoid(c)
    }"""
    _, ran = check(text, {"w": rand(4, 1, 3, 3), "v": rand(4, 4, 2, 2, seed=1), "b": rand(4)})
    assert ran.count("QLinearConv") == 2
    text = "g (float[1,4,9] x) => (float[1,5,7] y) { a = Conv(x, w)  y = Sigmoid(a) }"
    _, ran = check(text, {"w": rand(5, 4, 3)})
    assert ran.count("QLinearConv") == 1


def test_padding_of_an_asymmetric_input_stays_zero():
    # With a zero point that is not the code of 0, padded borders would be wrong.
    text = """g (float[1,3,5,5] x) => (float[1,4,5,5] y) {
        e = Exp(x)
        a = Conv<pads = [1,1,1,1]>(e, w)
        y = Sigmoid(a)
    }"""
    weights = {"w": rand(4, 3, 3, 3) * np.float32(0.2)}
    proto = model(text, weights)
    case = quantize_model(proto)
    assert_simulated(case, proto)
    assert case.facts.ranges["e"][0] > 0 and case.facts.encodings["e"].zero_point == 0


def test_dead_channels_give_their_bias_exactly():
    w = rand(4, 3, 3, 3)
    w[1], w[2] = 0, w[2] * np.float32(1e-30)
    text = "g (float[1,3,6,6] x) => (float[1,4,4,4] y) { a = Conv(x, w, b)  y = Neg(a) }"
    proto = model(text, {"w": w, "b": np.array([0.1, 0.7311, -0.4217, 0], np.float32)})
    case = quantize_model(proto)
    assert_simulated(case, proto)
    bias = next(n for n in case.after.graph.node if n.op_type == "Conv").input[2]
    dq = next(n for n in case.after.graph.node if n.output[0] == bias)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in case.after.graph.initializer}
    got = arrays[dq.input[0]].astype(np.float64) * arrays[dq.input[1]]
    np.testing.assert_allclose(got[1:3], [0.7311, -0.4217], rtol=1e-6)
    # onnxruntime's integer kernel must agree with the unoptimised graph, step by step.
    feeds = samples(proto, 1, seed=3)[0]
    session = backend("onnxruntime-cpu").open(case.after.SerializeToString())
    step = float(case.facts.encodings["a"].scale)
    error = np.abs(session.run(feeds)["y"] - run_reference(case.after, feeds)["y"])
    assert error.max() <= 1.01 * step and (error > 0.5 * step).mean() < 0.02


def test_excluded_nodes_stay_in_float_with_their_neighbours_quantized():
    text = """g (float[1,3,6,6] x) => (float[1,5,4,4] y) {
        a = Conv(x, w, b)
        r = Relu(a)
        m = Conv(r, v4)
        c = Conv(m, v)
        y = Sigmoid(c)
    }"""
    weights = {**CONV, "v4": rand(4, 4, 1, 1, seed=8)}
    case, ran = check(text, weights, exclude=("m_*",))
    assert case.facts.plan.nodes["m_Conv"] == ("float", "excluded by 'm_*'")
    assert ran.count("QLinearConv") == 2 and ran.count("Conv") == 1
    conv = next(n for n in case.after.graph.node if n.name == "m_Conv")
    assert conv.input[1] == "v4"


@pytest.mark.parametrize(
    ("body", "op"),
    [
        ("e = Conv(a, f)  y = Conv(e, v)", "Conv"),
        ("e = ConvTranspose(a, f)  y = Conv(e, v)", "ConvTranspose"),
        ("t = Reshape(a, s)  e = Gemm(t, m)  y = MatMul(e, k)", "Gemm"),
        ("t = Reshape(a, s)  e = Gemm<transB = 1>(t, m)  y = MatMul(e, k)", "Gemm"),
        ("t = Reshape(a, z)  e = Gemm<transA = 1>(t, m)  y = MatMul(e, k)", "Gemm"),
    ],
)
def test_float_nodes_between_quantized_ones_keep_their_float_weights(body, op):
    # onnxruntime would give them int8 weights of its own, one scale for all channels.
    weights = {
        "f": rand(4, 4, 1, 1),
        "m": rand(4, 4),
        "k": rand(4, 4, seed=4),
        "s": np.array([16, 4]),
        "z": np.array([4, 16]),
        "v": CONV["v"],
    }
    rank = "a,b" if op == "Gemm" else "a,b,c,d"
    text = f"""g (float[1,3,6,6] x) => (float[{rank}] out) {{
        a = Conv(x, w, b)
        {body}
        out = Neg(y)
    }}"""
    used = {k: v for k, v in weights.items() if f"{k})" in body}
    proto = model(text, {**used, "w": CONV["w"], "b": CONV["b"]})
    case = quantize_model(proto, exclude=("e_*",))
    assert_simulated(case, proto)
    feeds = samples(proto, 1, seed=11)[0]
    ran = kernels(case.after, feeds)
    assert any(op in each and not each.startswith("Q") for each in ran), ran
    session = backend("onnxruntime-cpu").open(case.after.SerializeToString())
    got, want = session.run(feeds)["out"], run_reference(case.after, feeds)["out"]
    # A code may differ at a tie; other weights would move many.
    assert (np.abs(got - want) > 1e-4 * np.abs(want).max()).mean() < 0.1


def test_a_second_run_is_refused():
    graph = onnx_io.load(model(CONVS, CONV))
    context = Context(target=target("cpu"), data=samples(model(CONVS, CONV)))
    from quantsim import Calibrate, QuantizeWeights

    steps = [PlanQuantization(), Calibrate(), QuantizeWeights(), InsertQDQ()]
    Pipeline(steps).run(graph, context)
    before = onnx_io.to_proto(graph)
    for again in (InsertQDQ(), PlanQuantization()):
        with pytest.raises(UsageError, match="quantized already; start from the float model"):
            Pipeline([again], given=graph.facts.present()).run(graph, context)
    assert onnx_io.to_proto(graph) == before


def test_a_saved_quantized_model_has_nothing_left_to_plan():
    case = quantize_model(model(CONVS, CONV))
    again = onnx_io.load(case.after)
    Pipeline([PlanQuantization()]).run(again, Context(target=target("cpu")))
    assert not again.facts.plan.activations and not again.facts.plan.weights


def test_the_same_input_gives_the_same_bytes():
    first, second = (quantize_model(model(CONVS, CONV)).after for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def test_an_input_with_a_default_can_be_quantized():
    text = """g (float[1,4,4,4] x, float[1,4,4,4] k) => (float[1,5,4,4] y) {
        a = Conv(x, w)
        s = Add(a, k)
        c = Conv(s, v)
        y = Sigmoid(c)
    }"""
    proto = model(text, {"w": rand(4, 4, 1, 1), "k": rand(1, 4, 4, 4, seed=3), "v": CONV["v"]})
    data = [{"x": each["x"]} for each in samples(proto)]
    case = quantize_model(proto, data)
    assert "k" in case.facts.ranges
    other = samples(proto, 1, seed=50)[0]
    got, want = run_reference(case.after, other), run_reference(proto, other)
    assert 0 < np.abs(got["y"] - want["y"]).max() < 0.05


def test_optimised_and_unoptimised_onnxruntime_agree_to_a_step():
    case = quantize_model(model(CONVS.replace("y = Sigmoid(c)", "y = Neg(c)"), CONV))
    feeds = samples(case.before, 1, seed=9)[0]
    session = backend("onnxruntime-cpu").open(case.after.SerializeToString())
    error = np.abs(session.run(feeds)["y"] - run_reference(case.after, feeds)["y"])
    step = float(case.facts.encodings["c"].scale)
    assert error.max() <= 2.01 * step and (error > 0.01 * step).mean() < 0.1


def test_the_simulation_notices_a_wrong_scale():
    proto = model(CONVS, CONV)
    case = quantize_model(proto)
    for tensor in case.after.graph.initializer:
        if tensor.name == "r_scale":
            array = onnx.numpy_helper.to_array(tensor) * np.float32(1.02)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
            break
    else:
        raise AssertionError("no r_scale")
    with pytest.raises(AssertionError):
        assert_simulated(case, proto)
    assert simulate(case, samples(proto, 1)[0])[1] <= 0.5


@pytest.mark.parametrize(
    "node", ["Gather<axis = 2>(a, index)", 'Resize<mode = "nearest">(a, , sizes)']
)
def test_codes_pass_through_gather_and_nearest_resize(node):
    text = f"""g (float[1,3,6,6] x) => (float[a,b,c,d] y) {{
        a = Conv(x, w, b)  p = {node}  c = Conv(p, v)  y = Sigmoid(c)
    }}"""
    others = {
        "index": np.array([1, 0, 3]),
        "sizes": np.array([1, 1, 2, 2], np.float32),
    }
    case, ran = check(text, {**CONV, **{k: v for k, v in others.items() if k in node}})
    assert case.facts.encodings["a"] is case.facts.encodings["p"]
    op = node.split("<")[0]
    assert [each for each in ran if each != "Sigmoid"] == [
        "QuantizeLinear",
        "QLinearConv",
        op,
        "QLinearConv",
        "DequantizeLinear",
    ]
