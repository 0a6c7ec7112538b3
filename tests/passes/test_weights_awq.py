from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.encoding import Spec, dequantize
from qgraph.passes.weights.awq import ALPHAS, awq, find_scaling, scaled_gram, scaled_weight
from qgraph.passes.weights.clipped import clipped_rounding
from qgraph.passes.weights.gptq import GPTQOptions, gptq
from qgraph.passes.weights.rtn import round_to_nearest

SPECS = [
    Spec("int4", axis=0, block=16),
    Spec("uint4", False, axis=0, block=12),
    Spec("uint3", False, axis=1),
    Spec("int4"),
]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


def layers(rows, columns, seed, spread=1.5):
    """Weights that share an input, and that input [T, K]."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * rows, rows)) + rng.standard_normal((4 * rows, 1))
    x *= np.exp(spread * rng.standard_normal(rows))
    return [rng.standard_normal((rows, n)).astype(np.float32) for n in columns], x


def error(x, weight, back):
    return float(((x @ (weight - back)) ** 2).sum())


@each_spec
def test_the_loss_of_each_alpha_is_that_of_its_definition(spec):
    weights, x = layers(40, (5, 9), 1)
    magnitude = np.abs(x).mean(axis=0)
    found = find_scaling(weights, spec, x.T @ x, magnitude)
    assert [alpha for alpha, _ in found.losses] == list(ALPHAS)
    size = sum(error(x, w, 0) for w in weights)
    wants = []
    for alpha, loss in found.losses:
        s = magnitude**alpha
        s /= np.exp(np.log(s).mean())
        want = 0.0
        for w in weights:
            scaled = (w * s[:, None].astype(np.float32)).astype(np.float32)
            codes, encoding, _ = round_to_nearest(scaled, spec)
            want += error(x, w, dequantize(codes, encoding) / s[:, None])
        # A weight on the border between two codes may fall to the other side.
        assert loss == pytest.approx(want / size, rel=2e-3)
        wants.append(want)
    assert found.alpha == ALPHAS[int(np.argmin(wants))] > 0
    s = magnitude**found.alpha
    np.testing.assert_allclose(found.scale, s / np.exp(np.log(s).mean()), rtol=1e-5)


@each_spec
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_never_worse_than_without_a_scale(spec, rows, seed):
    weights, x = layers(rows, (3, 4), seed)
    gram = x.T @ x
    result = awq(weights, spec, gram)
    after = before = 0.0
    for w, (codes, encoding, loss) in zip(weights, result.layers, strict=True):
        back = dequantize(codes, encoding) / result.scaling.scale[:, None].astype(np.float64)
        near, plain, _ = round_to_nearest(w, spec)
        assert loss == pytest.approx(error(x, w, back) / error(x, w, 0), rel=1e-3)
        after += error(x, w, back)
        before += error(x, w, dequantize(near, plain))
    assert after <= before * (1 + 1e-3)


def test_folding_the_scale_changes_nothing_but_rounding():
    weights, x = layers(24, (6,), 3)
    result = awq(weights, SPECS[0], x.T @ x)
    scale = result.scaling.scale.astype(np.float64)
    np.testing.assert_allclose(
        (x / scale) @ scaled_weight(weights[0], result.scaling.scale), x @ weights[0], atol=1e-4
    )
    np.testing.assert_allclose(
        scaled_gram(x.T @ x, result.scaling.scale), (x / scale).T @ (x / scale), rtol=1e-5
    )


def test_magnitudes_default_to_the_root_mean_square():
    weights, x = layers(24, (6,), 4)
    gram = x.T @ x
    default = find_scaling(weights, SPECS[0], gram)
    given_ = find_scaling(weights, SPECS[0], gram, np.sqrt((x**2).mean(axis=0)))
    np.testing.assert_allclose(default.scale, given_.scale, rtol=1e-5)


def test_gptq_and_clipping_run_on_the_scaled_weight():
    weights, x = layers(64, (16, 8), 5)
    gram, spec = x.T @ x, Spec("int4", axis=0, block=32)
    losses = {}
    for name, quantizer in {
        "rtn": round_to_nearest,
        "clip": clipped_rounding,
        "gptq": partial(gptq, options=GPTQOptions(order=True)),
    }.items():
        result = awq(weights, spec, gram, quantizer=quantizer)
        losses[name] = sum(loss for _, _, loss in result.layers)
        for w, (codes, encoding, loss) in zip(weights, result.layers, strict=True):
            back = dequantize(codes, encoding) / result.scaling.scale[:, None]
            assert loss == pytest.approx(error(x, w, back) / error(x, w, 0), rel=1e-4)
    assert losses["gptq"] < 0.7 * losses["rtn"] and losses["clip"] < 0.95 * losses["rtn"]
    alone = sum(gptq(w, spec, gram, options=GPTQOptions(order=True))[2] for w in weights)
    assert losses["gptq"] < alone


def test_tied_channels_share_a_scale_and_the_search_knows():
    weights, x = layers(12, (6,), 6)
    tied = np.array([0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5])
    found = find_scaling(weights, Spec("int4", axis=1), x.T @ x, tied=tied)
    magnitude = np.sqrt(np.diag(x.T @ x))
    shared = np.array([magnitude[tied == t].mean() for t in range(6)])[tied] ** found.alpha
    assert found.alpha > 0
    np.testing.assert_allclose(found.scale, shared / np.exp(np.log(shared).mean()), rtol=1e-5)


def test_channels_without_data():
    weights, x = layers(16, (4,), 7)
    x[:, [2, 5]] = 0
    found = find_scaling(weights, Spec("int4", axis=1), x.T @ x)
    assert np.isfinite(found.scale).all() and (found.scale > 0).all()
    nothing = find_scaling(weights, Spec("int4", axis=1), np.zeros((16, 16)))
    np.testing.assert_array_equal(nothing.scale, 1)
    assert nothing.alpha == 0


@pytest.mark.parametrize("factor", [1e-20, 1e20])
def test_the_gram_matrix_may_have_any_factor(factor):
    weights, x = layers(16, (4,), 8)
    one = find_scaling(weights, SPECS[0], (x.T @ x).astype(np.float32))
    other = find_scaling(weights, SPECS[0], (x.T @ x * factor).astype(np.float32))
    assert one.alpha == other.alpha


def test_refusals():
    weights, x = layers(8, (4,), 9)
    for given_, alphas in (([], ALPHAS), ([weights[0][:7]], ALPHAS), (weights, ())):
        with pytest.raises(ValueError, match="alphas"):
            find_scaling(given_, SPECS[0], x.T @ x, alphas=alphas)
