"""The repairs that change biases and weights, on a target whose biases stay in float."""

import numpy as np
import onnx
import pytest
from harness import model, run_reference
from quantsim import samples

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.encoding import Spec
from qgraph.passes import smooth
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.correct_bias import CorrectBias
from qgraph.passes.equalize_depthwise import EqualizeDepthwise
from qgraph.passes.insert_qdq import InsertQDQ
from qgraph.passes.plan import PlanQuantization
from qgraph.passes.quantize_weights import QuantizeWeights
from qgraph.pipeline import Pipeline
from qgraph.target import target


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 4


TEXT = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
    a = Conv(x, w1, b)
    r = Clip(a, low, high)
    d = Conv<group = 16, pads = [1,1,1,1]>(r, wd)
    e = Relu(d)
    y = Conv(e, w2)
}"""
# Channels of very unlike size, which one scale serves badly.
SIZES = np.geomspace(0.02, 4, 16).astype(np.float32)
WEIGHTS = {
    "w1": rand(16, 16, 1, 1) * SIZES[:, None, None, None],
    "b": rand(16) * SIZES,
    "wd": rand(16, 1, 3, 3, seed=1) / SIZES[:, None, None, None],
    "w2": rand(16, 16, 1, 1, seed=2),
    "low": np.float32(0),
    "high": np.float32(6),
}


def quantized(*repairs, after=(), text=TEXT, weights=WEIGHTS, target_name="tensorrt"):
    graph = onnx_io.load(model(text, weights))
    onnx_io.infer_shapes(graph)
    data = samples(model(text, weights), 12)
    context = Context(target=target(target_name), data=data)
    passes = [*repairs, PlanQuantization(), Calibrate(observer="minmax"), QuantizeWeights()]
    Pipeline([*passes, *after, InsertQDQ()]).run(graph, context)
    return onnx_io.to_proto(graph), graph


def sqnr(proto, text=TEXT, weights=WEIGHTS):
    before = model(text, weights)
    signal = noise = 0.0
    for feeds in samples(before, 6, seed=50):
        want, got = run_reference(before, feeds)["y"], run_reference(proto, feeds)["y"]
        signal += float(np.square(want, dtype=np.float64).sum())
        noise += float(np.square(want.astype(np.float64) - got).sum())
    return 10 * np.log10(signal / noise)


@pytest.mark.parametrize("statistic", ["median", "mean", "analytic"])
def test_corrected_biases_stay_in_float(statistic):
    proto, graph = quantized(after=[CorrectBias(enabled=True, statistic=statistic)])
    assert not graph.facts.plan.biases
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    convs = [n for n in proto.graph.node if n.op_type == "Conv"]
    # Those without a bias have got one.
    assert all(arrays[n.input[2]].dtype == np.float32 for n in convs)
    assert not any(array.dtype == np.int32 for array in arrays.values())
    plain, _ = quantized()
    assert sqnr(proto) > sqnr(plain) - 0.3


def test_a_bias_that_int32_could_not_hold_leaves_the_scales_alone():
    # On a target with int32 biases, dead channels get scales that express their bias.
    weights = {**WEIGHTS, "w1": WEIGHTS["w1"].copy(), "b": WEIGHTS["b"] + np.float32(3)}
    weights["w1"][0] *= np.float32(1e-20)
    scales = {}
    for name in ("cpu", "tensorrt"):
        _, graph = quantized(weights=weights, target_name=name)
        scales[name] = float(graph.facts.weights["a_Conv", 1].encoding.scale[0, 0, 0, 0])
    largest = float(np.abs(weights["w1"][0]).max())
    assert scales["tensorrt"] == pytest.approx(largest / 127, rel=1e-6)
    assert scales["cpu"] > 1e6 * scales["tensorrt"]


def test_equalizing_helps_symmetric_activations():
    plain, _ = quantized()
    equal, graph = quantized(EqualizeDepthwise(enabled=True, power=0.8))
    assert graph.facts.encodings["r"].zero_point == 0
    assert sqnr(equal) > sqnr(plain) + 2


def test_smoothing_is_searched_with_the_targets_activations(monkeypatch):
    text = """g (float[2,20,32] x) => (float[2,20,32] y) {
        l = LayerNormalization(x, s, t)
        y = MatMul(l, w)
    }"""
    weights = {"s": np.geomspace(0.1, 9, 32).astype(np.float32), "t": rand(32), "w": rand(32, 32)}
    seen = set()
    real = smooth.encode_range
    monkeypatch.setattr(
        smooth, "encode_range", lambda low, high, spec: seen.add(spec) or real(low, high, spec)
    )
    plain, _ = quantized(text=text, weights=weights)
    better, _ = quantized(smooth.Smooth(enabled=True), text=text, weights=weights)
    assert seen == {Spec("int8", symmetric=True)}
    assert sqnr(better, text, weights) > sqnr(plain, text, weights) + 1
