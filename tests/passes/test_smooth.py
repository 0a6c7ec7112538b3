import numpy as np
import pytest
from folds import constants, normal
from harness import apply, check_fires, check_stays, model, ops, random_feeds, run_reference
from quantsim import quantize_model, samples

from qgraph.context import Context
from qgraph.errors import DataError
from qgraph.passes import smooth
from qgraph.passes.infer import InferShapes
from qgraph.passes.smooth import Smooth

ON = Smooth(enabled=True, alpha=0.5)
# A few channels are much larger than the others, as behind LayerNormalization in transformers.
GAIN = np.array([1, 1, 30, 1, 0.2, 1, 1, 1], np.float32)


def net(tail="r = Add (n, x)", norm="LayerNormalization (x, scale, bias)", **more):
    """A normalisation read by two linear layers and, in `tail`, by a residual or not."""
    text = f"""g (float[2,5,8] x) => (float[2,5,4] p, float[a,b,c] y) {{
        n = {norm}
        p = MatMul (n, left)
        q = MatMul (n, right)
        {tail}
        y = Mul (q, {"r" if "r =" in tail else "q"}) }}"""
    arrays = {
        "scale": GAIN,
        "bias": 0.1 * normal(1, 8),
        "left": normal(2, 8, 4),
        "right": normal(3, 8, 8),
        **more,
    }
    return model(text, {k: v for k, v in arrays.items() if k in text}, opset=23)


def context(proto):
    return Context(data=[random_feeds(proto, seed) for seed in range(2)])


def test_a_residual_gets_a_mul():
    proto = net()
    after = check_fires([InferShapes(), ON], proto, changed=1, context=context(proto))
    assert ops(after).count("Mul") == ops(proto).count("Mul") + 1
    np.testing.assert_array_equal(constants(after)["scale"], GAIN)


@pytest.mark.parametrize(
    "norm",
    [
        "LayerNormalization (x, scale, bias)",
        "LayerNormalization (x, scale)",
        "RMSNormalization (x, scale)",
    ],
)
def test_without_one_it_goes_into_the_norm(norm):
    proto = net("", norm)
    after = check_fires([InferShapes(), ON], proto, changed=1, context=context(proto))
    assert ops(after) == ops(proto)


@pytest.mark.parametrize("tail", ["", "r = Add (n, x)"])
def test_a_gelu_gets_a_mul_whoever_reads_it(tail):
    proto = net(tail, "Gelu (x)")
    after = check_fires([InferShapes(), ON], proto, changed=1, context=context(proto))
    assert ops(after).count("Mul") == ops(proto).count("Mul") + 1 and "Gelu" in ops(after)


def test_gemm():
    proto = model(
        """g (float[5,8] x) => (float[5,4] p, float[5,8] y) {
            n = LayerNormalization (x, scale)
            p = Gemm <transB = 1> (n, left, b)
            q = Gemm (n, right)
            y = Exp (n) }""".replace("y = Exp (n)", "y = Add (q, n)"),
        {"scale": GAIN, "left": normal(2, 4, 8), "b": normal(4, 4), "right": normal(3, 8, 8)},
    )
    check_fires([InferShapes(), ON], proto, changed=1, context=context(proto))


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_scales_by_definition(alpha):
    proto = net("")
    data = samples(proto, 3)
    after, _, _ = apply(
        [InferShapes(), Smooth(enabled=True, alpha=alpha)], proto, Context(data=data)
    )
    x = np.concatenate([feeds["x"] for feeds in data]).astype(np.float64)
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    table = constants(proto)
    largest = np.abs(normed * GAIN + table["bias"]).max(axis=(0, 1))
    rows = np.abs(np.concatenate([table["left"], table["right"]], axis=1)).max(axis=1)
    s = largest**alpha / rows ** (1 - alpha)
    s /= np.exp(np.log(s).mean())
    found = constants(after)
    np.testing.assert_allclose(found["scale_folded"], GAIN / s, rtol=1e-4)
    np.testing.assert_allclose(found["left_folded"], table["left"] * s[:, None], rtol=1e-4)
    np.testing.assert_allclose(found["right_folded"], table["right"] * s[:, None], rtol=1e-4)


def test_search_lowers_the_error_of_int8():
    proto = net("")
    data = samples(proto, 16)
    smoothed, reports, _ = apply([InferShapes(), Smooth(enabled=True)], proto, Context(data=data))
    assert reports[-1].changed == 1 and "alpha" in reports[-1].details[0]
    errors = []
    for each in (proto, smoothed):
        after = quantize_model(each, data).after
        want = [run_reference(proto, feeds)["p"] for feeds in data]
        got = [run_reference(after, feeds)["p"] for feeds in data]
        errors.append(sum(float(((a - b) ** 2).sum()) for a, b in zip(want, got, strict=True)))
    assert errors[1] < errors[0] / 2


def test_search_leaves_like_channels_alone():
    proto = net(
        "",
        scale=np.ones(8, np.float32),
        left=np.ones((8, 4), np.float32),
        right=np.ones((8, 8), np.float32),
        bias=np.zeros(8, np.float32),
    )
    data = [
        {
            "x": np.stack([np.roll(np.arange(8), i) for i in range(10)])
            .reshape(2, 5, 8)
            .astype(np.float32)
        }
    ]
    check_stays([InferShapes(), Smooth(enabled=True)], proto, "no alpha lowers", Context(data=data))


def test_off_unless_asked():
    check_stays(Smooth(), net())


def test_dead_channels_stay():
    proto = net(scale=GAIN * (np.arange(8) != 3), bias=np.zeros(8, np.float32))
    check_fires([InferShapes(), ON], proto, context=context(proto))


@pytest.mark.parametrize("tail", ["", "r = Add (n, x)"])
def test_a_second_run_is_quiet(tail):
    proto = net(tail)
    _, reports, _ = apply([InferShapes(), ON, ON], proto, context(proto))
    assert reports[1].changed == 1 and reports[2].changed == 0
    if not tail:
        assert "already" in reports[2].refused[0].reason


@pytest.mark.parametrize(
    ("norm", "more", "reason"),
    [
        ("LayerNormalization <axis = 1> (x, wide)", {"wide": normal(7, 5, 8)}, "one constant"),
        ("LayerNormalization <axis = 1> (x, scale)", {}, "more than the last axis"),
    ],
)
def test_refuses(norm, more, reason):
    proto = net("", norm, **more)
    check_stays([InferShapes(), ON], proto, reason, context(proto))


def test_refuses_unknown_ranks():
    check_stays(ON, net(), "rank is unknown", context(net()))


def test_a_norm_without_linear_readers_is_no_case():
    proto = model(
        "g (float[2,8] x) => (float[2,8] y) { n = LayerNormalization (x, scale)\n y = Exp (n) }",
        {"scale": GAIN},
    )
    (_, report) = check_stays([InferShapes(), ON], proto, context=context(proto))
    assert not report.refused


def test_data_that_can_be_read_once_is_left_to_calibration():
    proto = net()
    data = iter(samples(proto, 2))
    reports = check_stays([InferShapes(), ON], proto, context=Context(data=data))
    assert "read only once" in reports[-1].warnings[0]
    assert len(list(data)) == 2


def test_no_data_is_an_error():
    with pytest.raises(DataError, match="needs data"):
        apply([InferShapes(), ON], net(), Context())


def test_weights_left_as_they_are_are_noticed(monkeypatch):
    monkeypatch.setattr(smooth, "scaled", lambda weight, factor: weight)
    proto = net()
    with pytest.raises(AssertionError, match="error"):
        check_fires([InferShapes(), ON], proto, context=context(proto))
