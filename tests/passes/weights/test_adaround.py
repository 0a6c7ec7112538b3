import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.weights import adaround
from qgraph.passes.weights.adaround import column_losses, round_adaptively

BITS4, NARROW8 = (-8, 7), (-127, 127)


def layer(groups, inputs, outputs, seed, rows=64, mix=1.0, limits=BITS4):
    """Weight, scale, codes rounded to nearest, and the Gram matrix of correlated inputs."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((groups, inputs, outputs))
    scale = np.abs(weight).max(axis=1, keepdims=True) / limits[1]
    common = rng.standard_normal((groups, rows, 1))
    x = rng.standard_normal((groups, rows, inputs)) + mix * common
    return weight, scale, nearest(weight, scale, 0, limits), x.transpose(0, 2, 1) @ x


def nearest(weight, scale, zero, limits):
    return np.clip(np.rint(weight / scale) + zero, *limits).astype(np.int64)


def loss(weight, codes, scale, gram, zero=0):
    return column_losses((codes - zero) * scale - weight, gram)


def best(weight, scale, gram, limits):
    """Least loss of every column over all 2^K roundings, by trying them."""
    low = np.clip(np.floor(weight / scale), *limits)
    high = np.clip(np.ceil(weight / scale), *limits)
    losses = []
    for ups in itertools.product((0, 1), repeat=weight.shape[1]):
        codes = np.where(np.array(ups)[None, :, None] == 1, high, low)
        losses.append(loss(weight, codes, scale, gram))
    return np.min(losses, axis=0)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.5, 2.0]),
)
def test_never_worse_than_nearest_and_never_better_than_possible(
    groups, inputs, outputs, seed, mix
):
    weight, scale, codes, gram = layer(groups, inputs, outputs, seed, mix=mix)
    found = round_adaptively(weight, codes, scale, np.array(0), BITS4, gram)
    got, least = loss(weight, found, scale, gram), best(weight, scale, gram, BITS4)
    assert (got <= loss(weight, codes, scale, gram)).all()
    assert (got >= least * (1 - 1e-9)).all()


def test_near_the_best_of_all_roundings():
    ratios, gains = [], []
    for seed in range(40):
        weight, scale, codes, gram = layer(2, 8, 3, seed, mix=5)
        found = round_adaptively(weight, codes, scale, np.array(0), BITS4, gram, damping=1e-6)
        got, least = loss(weight, found, scale, gram), best(weight, scale, gram, BITS4)
        ratios.append(got / least)
        gains.append(loss(weight, codes, scale, gram) / least)
    assert np.median(gains) > 1.5, "round to nearest is too good here: nothing to find"
    assert np.median(ratios) < 1.01 and np.mean(ratios) < 1.12, np.mean(ratios)
    assert np.quantile(ratios, 0.9) < 1.4, np.quantile(ratios, 0.9)


def test_a_diagonal_gram_matrix_gives_round_to_nearest():
    weight, scale, codes, gram = layer(2, 70, 5, 1)
    diagonal = np.stack([np.diag(np.diag(g)) for g in gram])
    found = round_adaptively(weight, codes, scale, np.array(0), BITS4, diagonal)
    np.testing.assert_array_equal(found, codes)


def test_ties_and_exact_weights_stay():
    gram = layer(1, 6, 4, 2)[3]
    codes = np.random.default_rng(0).integers(-8, 8, (1, 6, 4))
    found = round_adaptively(codes * 0.25, codes, np.array(0.25), np.array(0), BITS4, gram)
    np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize("limits", [BITS4, NARROW8])
def test_codes_stay_within_limits_and_next_to_the_weight(limits):
    weight, scale, _, gram = layer(1, 130, 6, 3, limits=limits)
    scale = scale * 0.7  # the largest weights are clipped
    codes = nearest(weight, scale, 0, limits)
    found = round_adaptively(weight, codes, scale, np.array(0), limits, gram)
    assert found.min() >= limits[0] and found.max() <= limits[1]
    inside = np.abs(weight / scale) < limits[1]
    assert (np.abs(found - weight / scale)[inside] < 1).all()
    assert (found != codes).any()


def test_zero_points_and_scales_a_block_along_the_inputs():
    weight, _, _, gram = layer(1, 12, 3, 4)
    scale = np.repeat(np.random.default_rng(1).uniform(0.9, 1.2, (1, 3, 3)), 4, axis=1)
    zero = np.repeat(np.array([[[3], [8], [12]]]), 4, axis=1)
    codes = nearest(weight, scale, zero, (0, 15))
    found = round_adaptively(weight, codes, scale, zero, (0, 15), gram)
    shifted = round_adaptively(weight, codes - zero, scale, np.array(0), (-99, 99), gram)
    assert codes.min() > 0 and codes.max() < 15, "clipped: not the same problem"
    np.testing.assert_array_equal(found, shifted + zero)
    assert (loss(weight, found, scale, gram, zero) <= loss(weight, codes, scale, gram, zero)).all()


def test_dead_inputs_and_dead_groups():
    weight, scale, codes, gram = layer(3, 8, 4, 5)
    gram[0] = 0  # no input at all
    gram[1, 2, :] = gram[1, :, 2] = 0  # one input that is always zero
    found = round_adaptively(weight, codes, scale, np.array(0), BITS4, gram)
    np.testing.assert_array_equal(found[0], codes[0])
    np.testing.assert_array_equal(found[1, 2], codes[1, 2])
    alone = round_adaptively(weight[2:], codes[2:], scale[2:], np.array(0), BITS4, gram[2:])
    np.testing.assert_array_equal(found[2:], alone)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_the_inputs_does_not_matter(size):
    weight, scale, codes, gram = layer(2, 20, 4, 6)
    usual = round_adaptively(weight, codes, scale, np.array(0), BITS4, gram)
    found = round_adaptively(weight, codes, scale, np.array(0), BITS4, gram * size)
    np.testing.assert_array_equal(found, usual)
    assert (usual != codes).any()


def test_columns_do_not_depend_on_each_other(monkeypatch):
    weight, scale, codes, gram = layer(1, 90, 7, 7)
    whole = round_adaptively(weight, codes, scale, np.array(0), BITS4, gram)
    monkeypatch.setattr(adaround, "_COLUMNS", 2)
    parts = round_adaptively(weight, codes, scale, np.array(0), BITS4, gram)
    np.testing.assert_array_equal(whole, parts)


def test_rows_in_blocks_equal_rows_one_by_one(monkeypatch):
    weight, scale, codes, gram = layer(2, 90, 5, 8)
    blocks = round_adaptively(weight, codes, scale, np.array(0), BITS4, gram)
    monkeypatch.setattr(adaround, "_BLOCK", 1)
    single = round_adaptively(weight, codes, scale, np.array(0), BITS4, gram)
    np.testing.assert_array_equal(blocks, single)


def test_no_single_flip_helps_in_the_end():
    weight, scale, codes, gram = layer(1, 40, 3, 9)
    found = round_adaptively(
        weight, codes, scale, np.array(0), BITS4, gram, damping=1e-9, sweeps=99
    )
    reached = loss(weight, found, scale, gram)
    low, high = np.floor(weight / scale), np.ceil(weight / scale)
    for k in range(40):
        flipped = found.copy()
        flipped[0, k] = (low + high)[0, k] - found[0, k]
        assert (loss(weight, flipped, scale, gram) >= reached * (1 - 1e-6)).all()


def test_a_gram_matrix_that_is_not_finite_is_refused():
    weight, scale, codes, gram = layer(1, 4, 2, 10)
    gram[0, 1, 1] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        round_adaptively(weight, codes, scale, np.array(0), BITS4, gram)


def test_a_descent_that_goes_up_is_noticed(monkeypatch):
    real = adaround._inverse_factor
    # Errors handed on with the wrong sign: the first pass finds nothing.
    monkeypatch.setattr(
        adaround, "_inverse_factor", lambda *a: real(*a) * (2 * np.eye(a[0].shape[1]) - 1)
    )
    monkeypatch.setattr(adaround, "_descend", lambda problem, codes, sweeps: codes)
    with pytest.raises(AssertionError):
        test_near_the_best_of_all_roundings()
