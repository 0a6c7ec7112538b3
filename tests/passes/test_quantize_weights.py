import numpy as np
import pytest
from harness import model
from hypothesis import given, settings
from hypothesis import strategies as st
from quantsim import quantize_model, samples

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.encoding import Encoding, Spec, dequantize
from qgraph.errors import UsageError
from qgraph.passes import quantize_weights
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.plan import PlanQuantization
from qgraph.passes.quantize_weights import BIAS_LIMIT, QuantizeWeights
from qgraph.passes.weights.rtn import relative_loss, round_to_nearest
from qgraph.pipeline import Pipeline
from qgraph.target import target

CONV = "g (float[1,3,6,6] x) => (float[1,4,4,4] y) { a = Conv(x, w, b)  y = Exp(a) }"


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def facts(text, weights, **options):
    proto = model(text, weights)
    graph = onnx_io.load(proto)
    context = Context(target=target("cpu"), data=samples(proto))
    Pipeline([PlanQuantization(), Calibrate(), QuantizeWeights(**options)]).run(graph, context)
    return graph.facts


def by_definition(weight, axis):
    """int8 codes in -127..127 and scales, one per index of `axis`, in plain loops."""
    codes, scales = np.zeros(weight.shape, np.int64), []
    for index in range(weight.shape[axis]):
        place = tuple(index if i == axis else slice(None) for i in range(weight.ndim))
        scale = np.float32(np.abs(weight[place]).max() / 127)
        scales.append(scale)
        codes[place] = np.rint(weight[place] / scale)
    return codes, np.array(scales)


@pytest.mark.parametrize(
    ("text", "shape", "axis"),
    [
        (
            "g (float[1,3,6,6] x) => (float[a,b,c,d] y) { z = Conv(x, w)  y = Exp(z) }",
            (4, 3, 3, 3),
            0,
        ),
        (
            "g (float[1,4,6,6] x) => (float[a,b,c,d] y) { z = Conv<group = 4>(x, w)  y = Exp(z) }",
            (4, 1, 3, 3),
            0,
        ),
        ("g (float[1,3,6] x) => (float[a,b,c] y) { z = Conv(x, w)  y = Exp(z) }", (4, 3, 3), 0),
        ("g (float[2,8] x) => (float[2,5] y) { y = MatMul(x, w) }", (8, 5), 1),
        ("g (float[2,8] x) => (float[2,5] y) { y = Gemm(x, w) }", (8, 5), 1),
        ("g (float[2,8] x) => (float[2,5] y) { y = Gemm<transB = 1>(x, w) }", (5, 8), 0),
    ],
)
def test_codes_per_output_channel(text, shape, axis):
    weight = rand(*shape)
    (found,) = facts(text, {"w": weight}).weights.values()
    codes, scales = by_definition(weight, axis)
    np.testing.assert_array_equal(found.codes.astype(np.int64), codes)
    np.testing.assert_array_equal(found.encoding.scale.reshape(-1), scales)
    assert found.codes.dtype == np.int8 and found.encoding.axis == axis
    back = dequantize(found.codes, found.encoding)
    assert np.abs(back - weight).max() <= 0.5001 * scales.max()
    want = ((weight.astype(np.float64) - back) ** 2).sum() / (weight.astype(np.float64) ** 2).sum()
    assert found.loss == pytest.approx(want, rel=1e-9)


def test_a_bias_that_would_not_fit_gets_a_coarser_scale():
    w = rand(4, 3, 3, 3)
    w[1] *= np.float32(1e-12)
    b = np.array([1, 1000, 0, -1], np.float32)
    found = facts(CONV, {"w": w, "b": b})
    weight = found.weights["a_Conv", 1]
    scale, data = weight.encoding.scale.reshape(-1), float(found.encodings["x"].scale)
    plain = by_definition(w, 0)[1]
    assert scale[1] > plain[1] and (scale[[0, 2, 3]] == plain[[0, 2, 3]]).all()
    assert 1000 / (data * float(scale[1])) == pytest.approx(BIAS_LIMIT, rel=1e-5)
    assert (weight.codes[1] == 0).all()


@pytest.mark.parametrize("bias", [0.0, 1e-30, 0.3, -7e5])
def test_a_dead_channel_counts_its_bias_in_fine_steps(bias):
    w = rand(4, 3, 3, 3)
    w[2] = 0
    b = np.array([0.1, 0.2, bias, 0.4], np.float32)
    found = facts(CONV, {"w": w, "b": b})
    scale = found.weights["a_Conv", 1].encoding.scale.reshape(-1)
    step = np.float32(found.encodings["x"].scale) * scale[2]
    assert step >= np.finfo(np.float32).tiny
    assert abs(np.rint(b[2] / step) * step - b[2]) <= 1e-6 * abs(b[2])
    assert abs(b[2] / step) <= 2**30 * (1 + 1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(-1e10, 1e10, width=32), min_size=4, max_size=4),
    st.lists(st.integers(-38, 5), min_size=4, max_size=4),
)
def test_every_bias_fits_into_int32(biases, exponents):
    w = rand(4, 3, 3, 3) * np.float32(10.0) ** np.array(exponents, np.float32)[:, None, None, None]
    found = facts(CONV, {"w": w, "b": np.array(biases, np.float32)})
    scale = found.weights["a_Conv", 1].encoding.scale.reshape(-1)
    step = (np.float32(found.encodings["x"].scale) * scale).astype(np.float32)
    assert (step >= np.finfo(np.float32).tiny).all()
    assert (np.abs(np.array(biases) / step.astype(np.float64)) <= 2**30 * (1 + 1e-5)).all()


def test_without_a_bias_a_dead_channel_has_scale_one():
    w = rand(8, 5)
    w[:, 2] = 0
    text = "g (float[2,8] x) => (float[2,5] y) { y = MatMul(x, w) }"
    (found,) = facts(text, {"w": w}).weights.values()
    assert found.encoding.scale.reshape(-1)[2] == 1 and (found.codes[:, 2] == 0).all()


def test_a_shared_weight_is_quantized_once(monkeypatch):
    calls = []

    def counting(weight, spec, gram=None):
        calls.append(weight.shape)
        return round_to_nearest(weight, spec, gram)

    monkeypatch.setattr(quantize_weights, "weight_quantizer", lambda name: counting)
    text = """g (float[1,4,6,6] x) => (float[1,4,6,6] y) {
        a = Conv(x, w)  c = Conv(a, w)  d = Conv(c, w)  y = Exp(d)
    }"""
    found = facts(text, {"w": rand(4, 4, 1, 1)}).weights
    assert calls == [(4, 4)]
    assert found["a_Conv", 1] is found["c_Conv", 1] is found["d_Conv", 1]


def test_other_channels_keep_the_quantizers_codes(monkeypatch):
    def all_sevens(weight, spec, gram=None):
        _, encoding, loss = round_to_nearest(weight, spec, gram)
        return np.full(weight.shape, 7, np.int8), encoding, loss

    monkeypatch.setattr(quantize_weights, "weight_quantizer", lambda name: all_sevens)
    w = rand(4, 3, 3, 3)
    w[1] = 0
    codes = facts(CONV, {"w": w, "b": rand(4)}).weights["a_Conv", 1].codes
    assert (codes[[0, 2, 3]] == 7).all() and (codes[1] == 0).all()


def test_unknown_method():
    with pytest.raises(UsageError, match="weight quantizer 'rtm'.*did you mean 'rtn'"):
        QuantizeWeights(method="rtm")


def test_round_to_nearest_uses_the_gram_matrix_for_the_loss_only():
    w, x = rand(6, 4), rand(50, 6, seed=2).astype(np.float64)
    spec = Spec("int8", True, axis=1)
    plain, encoding, _ = round_to_nearest(w, spec)
    codes, _, loss = round_to_nearest(w, spec, x.T @ x)
    np.testing.assert_array_equal(codes, plain)
    error = x @ (w - dequantize(codes, encoding).astype(np.float64))
    assert loss == pytest.approx((error**2).sum() / ((x @ w.astype(np.float64)) ** 2).sum())


def test_loss_of_a_zero_weight_is_zero():
    assert relative_loss(np.zeros((2, 2)), np.zeros((2, 2))) == 0


def test_scales_keep_the_weights_own_axes():
    case = quantize_model(model(CONV, {"w": rand(4, 3, 3, 3), "b": rand(4)}))
    encoding = case.facts.weights["a_Conv", 1].encoding
    assert isinstance(encoding, Encoding)
    assert encoding.scale.shape == (4, 1, 1, 1) and encoding.block == (1, 0, 0, 0)
