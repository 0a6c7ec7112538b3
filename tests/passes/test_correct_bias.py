import numpy as np
import onnx
import pytest
from folds import conv64, normal
from harness import model, run_reference
from quantsim import samples

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.errors import DataError
from qgraph.passes import correct_bias
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.correct_bias import CorrectBias
from qgraph.passes.insert_qdq import InsertQDQ
from qgraph.passes.plan import PlanQuantization
from qgraph.passes.quantize_weights import QuantizeWeights
from qgraph.pipeline import Pipeline
from qgraph.target import target

STATISTICS = {"median": np.median, "mean": np.mean}
CONV = """g (float[1,3,8,8] x) => (float[n,k,h,w] y) {
    c = Conv <group = 1> (x, w, b)
    r = Relu (c)
    d = Conv <group = 2> (r, w2, b2)
    y = Exp (d) }"""
CONVS = {
    "w": 0.2 * normal(1, 4, 3, 3, 3),
    "b": 0.1 * normal(2, 4),
    "w2": 0.2 * normal(3, 6, 2, 3, 3),
    "b2": 0.1 * normal(4, 6),
}
LINEAR = {
    "MatMul": "m = MatMul (x, w)\n y = Add (m, b)",
    "MatMul, bias first": "m = MatMul (x, w)\n y = Add (b, m)",
    "Gemm": "y = Gemm (x, w, b)",
    "Gemm transB": "y = Gemm <transB = 1> (x, w, b)",
    "Gemm without bias": "y = Gemm (x, w)",
}


def prepared(proto, data, *, observer="mean-minmax"):
    """Graph with everything that CorrectBias needs."""
    graph = onnx_io.load(proto)
    context = Context(target=target("cpu"), data=data)
    Pipeline([PlanQuantization(), Calibrate(observer=observer), QuantizeWeights()]).run(
        graph, context
    )
    return graph, context


def corrected(proto, data, given=None, **options):
    graph, context = prepared(proto, data)
    each = CorrectBias(enabled=True, **options)
    context.data = data if given is None else given
    (stage,) = Pipeline([each], given=graph.facts.present()).run(graph, context)
    return graph, stage.report


def fake(x, encoding):
    """Through the codes of an encoding and back, float64."""
    scale, zero = float(encoding.scale), int(encoding.zero_point)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


def decoded(graph, name, axis):
    weight = graph.facts.weights[name, 1]
    shape = [-1 if i == axis else 1 for i in range(weight.codes.ndim)]
    return weight.codes.astype(np.float64) * weight.encoding.scale.reshape(shape)


def node_of(graph, output):
    return next(n for n in graph.nodes() if n.outputs[0].name == output)


@pytest.mark.parametrize("statistic", list(STATISTICS))
def test_convolutions_against_float64(statistic):
    proto = model(CONV, CONVS)
    data = samples(proto, 7)
    graph, report = corrected(proto, data, statistic=statistic)
    assert report.changed == 2
    for output, source, groups, weight, bias in (
        ("c", "x", 1, "w", "b"),
        ("d", "r", 2, "w2", "b2"),
    ):
        node = node_of(graph, output)
        rows = []
        for feeds in data:
            inner = np.maximum(conv64(feeds["x"], CONVS["w"], CONVS["b"]), 0)
            x = {"x": feeds["x"].astype(np.float64), "r": inner}[source]
            exact = conv64(x, CONVS[weight], 0.0, groups=groups)
            coded = fake(x, graph.facts.encodings[source])
            got = conv64(coded, decoded(graph, node.name, 0), 0.0, groups=groups)
            rows.append((exact - got).mean(axis=(0, 2, 3)))
        want = STATISTICS[statistic](np.stack(rows), axis=0)
        found = graph.array(node.inputs[2]) - CONVS[bias]
        assert np.abs(want).max() > 5e-4
        np.testing.assert_allclose(found, want, atol=2e-6)


@pytest.mark.parametrize("form", list(LINEAR))
def test_linear_layers_against_float64(form):
    weight, bias = normal(1, 8, 5), normal(2, 5)
    stored = weight.T.copy() if "transB" in form else weight
    arrays = {"w": stored, "b": bias}
    text = f"g (float[6,8] x) => (float[6,5] y) {{ {LINEAR[form]} }}"
    proto = model(text, {k: v for k, v in arrays.items() if f"{k})" in text or f"{k}," in text})
    data = samples(proto, 5)
    graph, report = corrected(proto, data)
    assert report.changed == 1
    (node,) = graph.nodes("MatMul", "Gemm")
    matrix = decoded(graph, node.name, 0 if "transB" in form else 1)
    matrix = matrix.T if "transB" in form else matrix
    rows = []
    for feeds in data:
        x = feeds["x"].astype(np.float64)
        rows.append((x @ weight - fake(x, graph.facts.encodings["x"]) @ matrix).mean(axis=0))
    holder = next(graph.nodes("Add")) if "MatMul" in form else node
    index = 2 if holder is node else (0 if "first" in form else 1)
    found = graph.array(holder.inputs[index]) - (0 if "without" in form else bias)
    np.testing.assert_allclose(found, np.median(np.stack(rows), axis=0), atol=3e-6)


def test_analytic_is_weight_error_times_mean_input():
    proto = model(CONV, CONVS)
    data = samples(proto, 4)
    graph, report = corrected(proto, data, statistic="analytic")
    assert report.changed == 2
    node = node_of(graph, "d")
    inner = [np.maximum(conv64(f["x"], CONVS["w"], CONVS["b"]), 0) for f in data]
    mean = np.concatenate(inner).mean(axis=(0, 2, 3))
    error = CONVS["w2"].astype(np.float64) - decoded(graph, node.name, 0)
    want = np.zeros(6)
    for out in range(6):
        for i in range(2):
            want[out] += error[out, i].sum() * mean[2 * (out // 3) + i]
    np.testing.assert_allclose(graph.array(node.inputs[2]) - CONVS["b2"], want, atol=2e-6)


def test_the_exported_graph_is_right_on_average():
    """Mean errors of the last layer, seen in the graph that InsertQDQ writes."""
    # Positive inputs, and one large weight a channel that leaves few codes to the others: errors
    # with a mean.
    coarse = {k: v.copy() for k, v in CONVS.items()}
    for name in ("w", "w2"):
        coarse[name][:, 0, 0, 0] = 8
    proto = model(CONV.replace("y = Exp (d)", "y = Identity (d)"), coarse)
    data = [{"x": np.abs(feeds["x"]) + 1} for feeds in samples(proto, 15)]
    means = []
    for enabled in (False, True):
        graph, context = prepared(proto, data, observer="minmax")
        passes = [CorrectBias(enabled=enabled, statistic="mean"), InsertQDQ()]
        Pipeline(passes, given=graph.facts.present()).run(graph, context)
        after = onnx_io.to_proto(graph)
        onnx.checker.check_model(after, full_check=True)
        errors = [run_reference(after, f)["y"] - run_reference(proto, f)["y"] for f in data]
        means.append(np.abs(np.concatenate(errors).mean(axis=(0, 2, 3))).mean())
    assert means[1] < means[0] / 3, means


def test_a_convolution_without_bias_gets_one():
    proto = model(CONV.replace("w2, b2", "w2"), {k: v for k, v in CONVS.items() if k != "b2"})
    graph, report = corrected(proto, samples(proto))
    assert report.changed == 2
    node = node_of(graph, "d")
    assert len(node.inputs) == 3 and (node.name, 2) in graph.facts.plan.biases
    Pipeline([InsertQDQ()], given=graph.facts.present()).run(graph, Context())
    after = onnx_io.to_proto(graph)
    onnx.checker.check_model(after, full_check=True)
    stored = [t for t in after.graph.initializer if t.data_type == onnx.TensorProto.INT32]
    assert len(stored) == 2


def test_an_outlier_sample_does_not_move_the_median():
    proto = model(CONV, CONVS)
    data = samples(proto, 9)
    wild = [*data[:-1], {"x": 1000 * data[-1]["x"]}]
    results = {}
    for statistic in STATISTICS:
        found = []
        for given in (data, wild):
            graph, _ = corrected(proto, data, given, statistic=statistic)
            found.append(graph.array(node_of(graph, "c").inputs[2]))
        results[statistic] = np.abs(found[1] - found[0]).max()
    assert results["median"] < 0.02
    assert results["mean"] > 1


def test_layers_that_share_a_bias_get_their_own():
    text = """g (float[4,5] x) => (float[4,5] y, float[4,5] z) {
        y = Gemm (x, w, b)
        z = Gemm (x, v, b) }"""
    arrays = {"w": normal(1, 5, 5), "v": normal(2, 5, 5), "b": normal(3, 5)}
    graph, report = corrected(model(text, arrays), samples(model(text, arrays)))
    assert report.changed == 2
    first, second = (graph.array(n.inputs[2]) for n in graph.nodes("Gemm"))
    assert np.abs(first - second).max() > 1e-4


def test_off_unless_asked():
    proto = model(CONV, CONVS)
    graph, context = prepared(proto, samples(proto))
    (stage,) = Pipeline([CorrectBias()], given=graph.facts.present()).run(graph, context)
    assert stage.report.changed == 0 and not stage.report.refused


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ("y = Exp (m)", "no bias is added"),
        ("y = Add (m, wide)", "not one constant a channel"),
        ("y = Add (m, m2)\n m2 = Neg (x)", "not one constant a channel"),
    ],
)
def test_refuses_a_product_without_bias(tail, reason):
    tail = "m2 = Neg (x)\n y = Add (m, m2)" if "m2" in tail else tail
    text = f"g (float[5,5] x) => (float[5,5] y) {{ m = MatMul (x, w)\n {tail} }}"
    arrays = {"w": normal(1, 5, 5), "wide": normal(2, 5, 5)}
    proto = model(text, {k: v for k, v in arrays.items() if k in text})
    _, report = corrected(proto, samples(proto))
    assert report.changed == 0
    assert reason in report.refused[0].reason


def test_refuses_what_int32_cannot_hold(monkeypatch):
    monkeypatch.setattr(correct_bias, "BIAS_LIMIT", 1.0)
    proto = model(CONV, CONVS)
    _, report = corrected(proto, samples(proto))
    assert report.changed == 0
    assert all("int32" in refusal.reason for refusal in report.refused)


def test_data_that_can_be_read_once_is_left_alone():
    proto = model(CONV, CONVS)
    data = samples(proto)
    _, report = corrected(proto, data, iter(data))
    assert report.changed == 0 and "read only once" in report.warnings[0]


def test_nan_is_named():
    proto = model(CONV, CONVS)
    data = samples(proto)
    broken = [{"x": np.full_like(data[0]["x"], np.nan)}]
    with pytest.raises(DataError, match="NaN"):
        corrected(proto, data, broken)


def test_a_wrong_sign_is_noticed(monkeypatch):
    real = correct_bias._middle
    monkeypatch.setattr(correct_bias, "_middle", lambda *args: -real(*args))
    with pytest.raises(AssertionError):
        test_convolutions_against_float64("median")
    with pytest.raises(AssertionError):
        test_the_exported_graph_is_right_on_average()
