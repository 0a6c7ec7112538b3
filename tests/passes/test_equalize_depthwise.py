import numpy as np
import onnx
import pytest
from folds import conv64, normal
from harness import apply, check_fires, check_stays, model, random_feeds
from quantsim import samples

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.errors import DataError
from qgraph.passes import conv_pairs
from qgraph.passes.calibrate import Calibrate
from qgraph.passes.equalize_depthwise import EqualizeDepthwise
from qgraph.passes.plan import PlanQuantization
from qgraph.pipeline import Pipeline
from qgraph.target import target

ON = EqualizeDepthwise(enabled=True)
ACTIVATIONS = {
    "none": "a = Identity (c)",
    "relu": "a = Relu (c)",
    "leaky": "a = LeakyRelu <alpha = 0.2> (c)",
    "prelu": "a = PRelu (c, slope)",
    "relu6": "a = Clip (c, zero, six)",
}
SPREAD = np.array([1, 0.1, 0.02, 3, 0.5, 0.1], np.float32)


def net(activation="relu", tail="y = Exp (d)", head="float[1,3,8,8] x", out="float[n,k,h,w] y"):
    body = ACTIVATIONS.get(activation, activation)
    text = f"""g ({head}) => ({out}) {{
        c = Conv <pads = [1, 1, 1, 1]> (x, first, bias)
        {body}
        d = Conv <group = 6, pads = [1, 1, 1, 1]> (a, second, shift)
        {tail} }}"""
    if activation == "none":
        text = text.replace(body, "").replace("(a, second", "(c, second")
    arrays = {
        "first": normal(1, 6, 3, 3, 3) * SPREAD[:, None, None, None],
        "bias": normal(2, 6) * SPREAD,
        "second": 0.1 * normal(3, 6, 1, 3, 3),
        "shift": 0.1 * normal(4, 6),
        "slope": np.abs(normal(5, 6, 1, 1)),
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    return model(text, {k: v for k, v in arrays.items() if k in text})


def context(proto, feeds=None):
    data = feeds or [random_feeds(proto, seed) for seed in range(2)]
    return Context(target=target("cpu"), data=data)


def arrays_of(proto, op="Conv"):
    """Weight and bias of each convolution, in order."""
    found = {t.name: t_array(t) for t in proto.graph.initializer}
    return [[found[i] for i in n.input[1:]] for n in proto.graph.node if n.op_type == op]


def t_array(tensor):
    return onnx.numpy_helper.to_array(tensor)


def scales_by_definition(proto, data, power, headroom):
    """From the values between the convolutions, computed by hand in float64."""
    (first, bias), _ = arrays_of(proto)
    largest = np.zeros(len(first))
    for feeds in data:
        y = conv64(np.pad(feeds["x"], [(0, 0), (0, 0), (1, 1), (1, 1)]), first, bias)
        y = np.clip(y, 0, None)
        largest = np.maximum(largest, np.abs(y).max(axis=(0, 2, 3)))
    return np.minimum(1, headroom * (largest / largest.max()) ** power)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_keeps_the_results(activation):
    proto = net(activation)
    check_fires(ON, proto, changed=1, context=context(proto))


def test_off_unless_asked():
    assert not EqualizeDepthwise().enabled
    check_stays(EqualizeDepthwise(), net())


@pytest.mark.parametrize(("power", "headroom"), [(0.5, 1.25), (1.0, 1.0), (1.0, 2.0), (0.25, 1.0)])
def test_scales_by_definition(power, headroom):
    proto = net("relu")
    data = samples(proto, 3)
    each = EqualizeDepthwise(enabled=True, power=power, headroom=headroom)
    after, _, _ = apply(each, proto, context(proto, data))
    s = scales_by_definition(proto, data, power, headroom)
    assert s.min() < 0.5
    (first, bias), (second, shift) = arrays_of(proto)
    (new_first, new_bias), (new_second, new_shift) = arrays_of(after)
    np.testing.assert_allclose(new_first, first / s[:, None, None, None], rtol=1e-5)
    np.testing.assert_allclose(new_bias, bias / s, rtol=1e-5)
    np.testing.assert_allclose(new_second, second * s[:, None, None, None], rtol=1e-5)
    np.testing.assert_array_equal(new_shift, shift)


def test_a_multiplier_repeats_the_scales():
    proto = model(
        """g (float[1,3,8,8] x) => (float[n,k,h,w] y) {
            c = Conv (x, first)
            a = Relu (c)
            d = Conv <group = 4> (a, second)
            y = Exp (d) }""",
        {
            "first": normal(1, 4, 3, 3, 3) * SPREAD[:4, None, None, None],
            "second": 0.1 * normal(2, 8, 1, 3, 3),
        },
    )
    check_fires(ON, proto, changed=1, context=context(proto))


def test_one_dimension():
    proto = model(
        """g (float[2,3,20] x) => (float[n,k,w] y) {
            c = Conv (x, first)
            d = Conv <group = 4> (c, second)
            y = Tanh (d) }""",
        {"first": normal(1, 4, 3, 3) * SPREAD[:4, None, None], "second": normal(2, 4, 1, 3)},
    )
    check_fires(ON, proto, changed=1, context=context(proto))


def test_a_kept_clip_gives_the_codes_of_exact_bounds():
    """On data far outside calibration: float results differ, integer ones do not."""
    proto = net("relu6")
    calibration = context(proto, samples(proto, 3))
    graph = onnx_io.load(proto)
    passes = [ON, PlanQuantization(), Calibrate(observer="minmax")]
    Pipeline(passes).run(graph, calibration)
    (first, bias), _ = arrays_of(proto)
    equalized = arrays_of(onnx_io.to_proto(graph))[0]
    s = (first / equalized[0]).mean(axis=(1, 2, 3), dtype=np.float64)
    encoding = graph.facts.encodings["a"]
    x = 20 * np.pad(samples(proto, 1, seed=9)[0]["x"], [(0, 0), (0, 0), (1, 1), (1, 1)])
    exact = np.clip(conv64(x, first, bias), 0, 6) / s[:, None, None]
    kept = np.clip(conv64(x, *equalized), 0, 6)
    assert np.abs(exact - kept).max() > 1  # without codes they are two things

    def codes(values):
        return np.clip(np.rint(values / float(encoding.scale)) + int(encoding.zero_point), 0, 255)

    assert (codes(exact) == codes(kept)).mean() > 0.9999  # ties may round another way
    assert np.abs(codes(exact) - codes(kept)).max() <= 1


def test_dead_channels_stay():
    proto = net("relu")
    first = t_array(proto.graph.initializer[0]).copy()
    first[1] = 0
    bias = t_array(proto.graph.initializer[1]).copy()
    bias[1] = 0
    proto.graph.initializer[0].CopyFrom(onnx_tensor(first, "first"))
    proto.graph.initializer[1].CopyFrom(onnx_tensor(bias, "bias"))
    after = check_fires(ON, proto, changed=1, context=context(proto))
    before, (new, _) = arrays_of(proto)[1][0], arrays_of(after)[1]
    np.testing.assert_array_equal(new[1], before[1])


def onnx_tensor(array, name):
    return onnx.numpy_helper.from_array(array, name)


def test_all_channels_dead():
    proto = net("relu")
    feeds = [{"x": np.zeros((1, 3, 8, 8), np.float32)}]
    for index in (0, 1):
        tensor = proto.graph.initializer[index]
        tensor.CopyFrom(onnx_tensor(np.zeros_like(t_array(tensor)), tensor.name))
    check_stays(ON, proto, "like ranges", context(proto, feeds))


@pytest.mark.parametrize(
    ("activation", "tail", "reason"),
    [
        ("a = Sigmoid (c)", "y = Exp (d)", "no convolution through a scalable"),
        ("m = Neg (six)\n a = Clip (c, m, six)", "y = Exp (d)", "not from 0"),
        ("a = Clip (c)", "y = Exp (d)", "not from 0"),
        ("a = Relu (c)", "b = Neg (a)\n y = Add (b, d)", "read elsewhere"),
        ("a = Relu (c)", "b = Neg (c)\n y = Add (b, d)", "function's input is read elsewhere"),
    ],
)
def test_refuses(activation, tail, reason):
    proto = net(activation, tail)
    check_stays(ON, proto, reason, context(proto))


def test_refuses_an_output_between():
    proto = net("relu", out="float[n,k,h,w] y, float[n2,k2,h2,w2] a")
    check_stays(ON, proto, "read elsewhere", context(proto))


def test_dense_consumers_are_no_case():
    proto = model(
        "g (float[1,3,8,8] x) => (float[n,k,h,w] y) { c = Conv (x, a)\n y = Conv (c, b) }",
        {"a": normal(1, 6, 3, 3, 3), "b": normal(2, 4, 6, 3, 3)},
    )
    (report,) = check_stays(ON, proto, context=context(proto))
    assert not report.refused


def test_data_that_can_be_read_once_is_left_to_calibration():
    proto = net("relu")
    data = iter(samples(proto, 2))
    (report,) = check_stays(ON, proto, context=Context(data=data))
    assert "read only once" in report.warnings[0]
    assert len(list(data)) == 2


def test_no_data_is_an_error():
    with pytest.raises(DataError, match="needs data"):
        apply(ON, net("relu"), Context())


def test_scales_left_out_on_one_side_are_noticed(monkeypatch):
    real = conv_pairs.scaled
    monkeypatch.setattr(conv_pairs, "scaled", lambda w, factor: real(w, np.ones_like(factor)))
    proto = net("relu")
    with pytest.raises(AssertionError, match="error"):
        check_fires(ON, proto, context=context(proto))


def test_int8_results_get_better():
    """Small channels get steps of their own size: what the pass is for."""
    proto = net("relu", tail="y = Tanh (d)")
    data = samples(proto, 8)
    errors = []
    for each in (EqualizeDepthwise(), ON):
        graph = onnx_io.load(proto)
        Pipeline([each, PlanQuantization(), Calibrate(observer="minmax")]).run(
            graph, context(proto, data)
        )
        encoding = graph.facts.encodings["a"]
        first, bias = arrays_of(onnx_io.to_proto(graph))[0]
        second = arrays_of(onnx_io.to_proto(graph))[1][0]
        x = np.pad(data[0]["x"], [(0, 0), (0, 0), (1, 1), (1, 1)])
        a = np.clip(conv64(x, first, bias), 0, None)
        step = float(encoding.scale)
        coded = np.clip(np.rint(a / step), 0, 255) * step
        delta = conv64(coded - a, second, np.zeros(6), groups=6)
        exact = conv64(a, second, np.zeros(6), groups=6)
        per_channel = (delta**2).sum((0, 2, 3)) / (exact**2).sum((0, 2, 3))
        errors.append(per_channel)
    assert errors[1][2] < errors[0][2] / 4  # the smallest channel
