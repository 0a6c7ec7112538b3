import numpy as np
import onnx
import pytest
from folds import normal
from harness import model, run_reference
from quantsim import samples

from qgraph import flow, onnx_io
from qgraph.context import Context
from qgraph.encoding import dequantize
from qgraph.errors import DataError
from qgraph.passes import adaround
from qgraph.passes.adaround import AdaRound
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.correct_bias import CorrectBias
from qgraph.passes.insert_qdq import InsertQDQ
from qgraph.passes.plan import PlanQuantization
from qgraph.passes.quantize_weights import QuantizeWeights
from qgraph.pipeline import Pipeline
from qgraph.recipe import Recipe
from qgraph.target import target

NET = """g (float[1,3,a,b] x) => (float[n,k,h,w] y) {
    c = Conv <pads = [1,1,1,1]> (x, w, b)
    r = Relu (c)
    d = Conv <group = 8> (r, w2, b2)
    s = Relu (d)
    e = Conv (s, w3, b3)
    y = Exp (e) }"""
ARRAYS = {
    "w": 0.2 * normal(1, 8, 3, 3, 3),
    "b": 0.1 * normal(2, 8),
    "w2": 0.3 * normal(3, 8, 1, 3, 3),
    "b2": 0.1 * normal(4, 8),
    "w3": 0.2 * normal(5, 6, 8, 1, 1),
    "b3": 0.1 * normal(6, 6),
}
CORRECTING = Recipe(passes={"correct_bias": {"enabled": True}})


def images(count=16, size=10, seed=0):
    """Smooth ones, so that neighbouring elements are alike, as in photographs."""
    rng = np.random.default_rng(seed)
    x = np.tanh(rng.standard_normal((count, 1, 3, size, size)).cumsum(3).cumsum(4) / 4)
    return [{"x": each.astype(np.float32)} for each in x]


def coarse():
    """Weights with one large element a channel: few codes are left to the others."""
    arrays = {k: v.copy() for k, v in ARRAYS.items()}
    for name in ("w", "w2", "w3"):
        arrays[name][:, 0, 0, 0] = 12
    return model(NET, arrays)


def prepared(proto, data, recipe=None, name="cpu"):
    graph = onnx_io.load(proto)
    context = Context(target=target(name), data=data, recipe=recipe)
    passes = [PlanQuantization(), Calibrate(observer="minmax"), QuantizeWeights()]
    Pipeline(passes).run(graph, context)
    return graph, context


def rounded(proto, data, recipe=None, given=None, **options):
    graph, context = prepared(proto, data, recipe)
    before = graph.facts.weights
    context.data = data if given is None else given
    each = AdaRound(enabled=True, **options)
    (stage,) = Pipeline([each], given=graph.facts.present()).run(graph, context)
    return graph, before, stage.report


def codes(weights):
    return {key: weight.codes for key, weight in weights.items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])


def test_layers_err_less():
    proto, data = coarse(), images()
    graph, before, report = rounded(proto, data)
    assert report.changed == 3 and not report.refused
    for node in graph.nodes("Conv"):
        old, new = before[node.name, 1], graph.facts.weights[node.name, 1]
        assert new.encoding is old.encoding and new.codes.dtype == old.codes.dtype
        exact = graph.array(node.inputs[1])
        assert np.abs(dequantize(new.codes, new.encoding) - exact).max() <= float(
            new.encoding.scale.max()
        )
        single = onnx.helper.make_model(
            onnx.helper.make_graph(
                [onnx.helper.make_node("Conv", ["x", "w"], ["y"], **attributes(node))],
                "one",
                [onnx.helper.make_tensor_value_info("x", 1, None)],
                [onnx.helper.make_tensor_value_info("y", 1, None)],
                [onnx.numpy_helper.from_array(np.zeros(exact.shape, np.float32), "w")],
            ),
            opset_imports=[onnx.helper.make_opsetid("", 21)],
            ir_version=10,
        )
        errors = []
        for weight in (old, new):
            error = dequantize(weight.codes, weight.encoding) - exact
            single.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(error, "w"))
            results = [run_reference(single, {"x": x})["y"] for x in inputs_of(proto, node, data)]
            errors.append(sum(float(np.square(y).sum()) for y in results))
        assert errors[1] < 0.8 * errors[0], (node.name, errors)


def attributes(node):
    return {name: attr.value for name, attr in node.attributes.items()}


def inputs_of(proto, node, data):
    name = node.inputs[0].name
    if name == "x":
        return [feeds["x"] for feeds in data]
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    probe.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    return [run_reference(probe, feeds)[name] for feeds in data]


@pytest.mark.parametrize("recipe", [None, CORRECTING])
def test_the_exported_graph_is_nearer_on_other_data(recipe):
    proto = coarse()
    proto.graph.node[-1].op_type = "Identity"
    errors = []
    for enabled in (False, True):
        graph, context = prepared(proto, images(), recipe)
        passes = [AdaRound(enabled=enabled), CorrectBias(enabled=recipe is not None), InsertQDQ()]
        Pipeline(passes, given=graph.facts.present()).run(graph, context)
        after = onnx_io.to_proto(graph)
        onnx.checker.check_model(after, full_check=True)
        others = images(seed=1)
        pairs = [(run_reference(after, f)["y"], run_reference(proto, f)["y"]) for f in others]
        errors.append(sum(float(np.square(a - b).sum()) for a, b in pairs))
    assert errors[1] < 0.7 * errors[0], errors


def test_the_same_again_in_one_run_or_many(monkeypatch):
    proto, data = coarse(), images(size=40)
    first = codes(rounded(proto, data, rows=500)[0].facts.weights)
    second = codes(rounded(proto, data, rows=500)[0].facts.weights)
    assert_same(first, second)
    runs = []
    graph, context = prepared(proto, data)
    context.progress = lambda what, done, total: runs.append((what, done, total))
    small = AdaRound(enabled=True, rows=500, memory_mb=1)
    blocks = adaround._blocks
    monkeypatch.setattr(adaround, "_blocks", lambda g, shared, _: blocks(g, shared, 1))
    Pipeline([small], given=graph.facts.present()).run(graph, context)
    assert_same(first, codes(graph.facts.weights))
    assert runs.count(("rounding weights", 3, 3)) == 1
    assert [r for r in runs if r[0] == "observing layers"][-1][1:] == (16, 16)
    assert len([r for r in runs if r[0] == "observing layers"]) == 3 * 16


def test_a_gram_matrix_without_room_is_refused():
    text = "g (float[4,600] x) => (float[4,2] y) { y = MatMul (x, w) }"
    proto = model(text, {"w": normal(1, 600, 2)})
    _, _, report = rounded(proto, samples(proto), memory_mb=1)
    assert report.changed == 0 and "needs adaround.memory_mb=" in report.refused[0].reason
    needed = int(report.refused[0].reason.split("=")[1])
    assert rounded(proto, samples(proto), memory_mb=needed)[2].changed == 1
    assert rounded(proto, samples(proto), memory_mb=needed - 1)[2].changed == 0


def test_layers_that_share_a_weight_still_do():
    text = """g (float[4,9] x) => (float[4,9] y) {
        a = MatMul (x, w)
        b = Tanh (a)
        y = MatMul (b, w) }"""
    proto = model(text, {"w": normal(1, 9, 9)})
    graph, _, report = rounded(proto, samples(proto))
    assert report.changed == 1
    first, second = graph.facts.weights.values()
    assert first is second


def test_convolutions_that_cut_one_weight_into_different_groups():
    text = """g (float[1,4,6,6] x) => (float[1,4,4,4] y, float[1,4,2,2] z) {
        c = Conv <group = 4> (x, w)
        d = Slice (x, start, stop, axes)
        e = Conv <group = 2> (d, w)
        y = Exp (c)
        f = Slice (e, start2, stop2, spatial)
        z = Exp (f) }"""
    arrays = {"w": normal(1, 4, 1, 3, 3)} | {
        name: np.array(value, np.int64)
        for name, value in {
            "start": [0],
            "stop": [2],
            "axes": [1],
            "start2": [0, 0],
            "stop2": [2, 2],
            "spatial": [2, 3],
        }.items()
    }
    proto = model(text, arrays)
    data = [{"x": feeds["x"] + 3} for feeds in samples(proto)]
    graph, _, report = rounded(proto, data)
    assert report.changed == 2 and len(graph.facts.weights) == 2


def test_transposed_weights():
    text = """g (float[20,9] x) => (float[20,4] y) {
        a = Gemm <transB = 1> (x, w, b)
        y = Gemm (a, v) }"""
    proto = model(text, {"w": normal(1, 9, 9), "b": normal(2, 9), "v": normal(3, 9, 4)})
    data = [{"x": feeds["x"] + 3} for feeds in samples(proto)]
    graph, before, report = rounded(proto, data)
    assert report.changed == 2
    for key, old in before.items():
        assert graph.facts.weights[key].codes.shape == old.codes.shape
        node = next(n for n in graph.nodes("Gemm") if n.name == key[0])
        weight = graph.array(node.inputs[1])
        back = dequantize(graph.facts.weights[key].codes, old.encoding)
        assert (np.abs(back - weight) <= old.encoding.scale * 1.0001).all()


def test_dead_channels_keep_their_codes():
    arrays = {k: v.copy() for k, v in ARRAYS.items()}
    # Behind the Relus nothing is left of channel 3.
    arrays["w"][3], arrays["b"][3], arrays["b2"][3] = 0, -1, -1
    arrays["w2"][5] = 0
    graph, before, report = rounded(model(NET, arrays), images())
    assert report.changed == 3
    names = [node.name for node in graph.nodes("Conv")]
    for name, index in ((names[0], 3), (names[1], 3), (names[1], 5)):
        np.testing.assert_array_equal(
            graph.facts.weights[name, 1].codes[index], before[name, 1].codes[index]
        )
    last = graph.facts.weights[names[2], 1].codes[:, 3]
    np.testing.assert_array_equal(last, before[names[2], 1].codes[:, 3])


def test_the_mean_is_left_to_correct_bias():
    """Inputs with a large mean: not centred, errors must sum to nothing."""
    text = "g (float[64,12] x) => (float[64,5] y) { y = Gemm (x, w, b) }"
    proto = model(text, {"w": normal(1, 12, 5), "b": normal(2, 5)})
    data = [{"x": 0.3 * feeds["x"] + 5} for feeds in samples(proto)]
    x = np.concatenate([feeds["x"] for feeds in data]).astype(np.float64)
    found = []
    for recipe in (None, CORRECTING):
        graph, before, _ = rounded(proto, data, recipe, damping=1e-6)
        (key,) = before
        error = dequantize(graph.facts.weights[key].codes, before[key].encoding)
        error = error.astype(np.float64) - graph.array(next(graph.nodes("Gemm")).inputs[1])
        result = x @ error
        found.append((np.square(result.mean(axis=0)).sum(), result.var(axis=0).sum()))
    (mean, spread), (mean_left, spread_left) = found
    assert mean < mean_left / 10 and spread_left < spread, found


def test_the_mean_stays_where_no_bias_takes_it():
    text = "g (float[64,12] x) => (float[64,5] y) { y = MatMul (x, w) }"
    proto = model(text, {"w": normal(1, 12, 5)})
    data = [{"x": 0.3 * feeds["x"] + 5} for feeds in samples(proto)]
    with_recipe, without = (rounded(proto, data, r)[0].facts.weights for r in (CORRECTING, None))
    assert_same(codes(with_recipe), codes(without))


def test_off_unless_asked():
    graph, context = prepared(coarse(), images())
    before = graph.facts.weights
    (stage,) = Pipeline([AdaRound()], given=graph.facts.present()).run(graph, context)
    assert stage.report.changed == 0 and graph.facts.weights is before


def test_runs_between_weights_and_biases():
    names = [each.name for each in flow.quantizing_passes("int8", {})]
    assert names.index("quantize_weights") < names.index("adaround") < names.index("correct_bias")


def test_data_that_can_be_read_once_is_left_alone():
    graph, before, report = rounded(coarse(), images(), given=iter(images()))
    assert report.changed == 0 and "read only once" in report.warnings[0]
    assert_same(codes(graph.facts.weights), codes(before))


def test_nan_is_named_and_nothing_is_half_done():
    graph, context = prepared(coarse(), images())
    before = graph.facts.weights
    bad = images()
    bad[5] = {"x": np.full_like(bad[5]["x"], np.nan)}
    context.data = bad
    with pytest.raises(DataError, match="sample 5 makes .* NaN"):
        Pipeline([AdaRound(enabled=True, rows=10**6)], given=graph.facts.present()).run(
            graph, context
        )
    assert graph.facts.weights is before


def test_an_empty_input_is_refused():
    text = "g (float[n,9] x) => (float[n,4] y) { y = MatMul (x, w) }"
    proto = model(text, {"w": normal(1, 9, 4)})
    empty = [{"x": np.zeros((0, 9), np.float32)}]
    _, _, report = rounded(proto, samples(proto), given=empty)
    assert report.changed == 0 and "empty in every sample" in report.refused[0].reason


def test_forgetting_to_round_is_noticed(monkeypatch):
    monkeypatch.setattr(adaround, "round_adaptively", lambda weight, codes, *_, **__: codes)
    with pytest.raises(AssertionError):
        test_layers_err_less()
    with pytest.raises(AssertionError):
        test_the_exported_graph_is_nearer_on_other_data(None)
