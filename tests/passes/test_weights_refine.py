import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.encoding import Spec, dequantize
from qgraph.passes.weights.refine import refine, refit_scales
from qgraph.passes.weights.rtn import round_to_nearest

SPECS = [
    Spec("int4", axis=0, block=8),
    Spec("uint4", False, axis=0, block=7),
    Spec("uint3", False, axis=1),
    Spec("int4"),
]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


def layer(rows, columns, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3 * rows, rows)) + rng.standard_normal((3 * rows, 1))
    x *= np.exp(0.7 * rng.standard_normal(rows))
    return rng.standard_normal((rows, columns)), x.T @ x


def loss_of(weight, codes, encoding, gram):
    error = weight - dequantize(codes, encoding).astype(np.float64)
    return np.einsum("kn,kj,jn->n", error, gram, error)


def steps_of(codes, encoding, rows):
    length = encoding.block[0] or rows
    which = np.arange(rows) // length
    return codes.astype(np.float64) - encoding.zero_point[which], which


@each_spec
@pytest.mark.parametrize("seed", range(3))
def test_a_sweep_takes_each_rows_best_codes_in_turn(spec, seed):
    weight, gram = layer(37, 3, seed)
    codes, encoding, _ = round_to_nearest(weight, spec)
    rank = np.random.default_rng(seed).permutation(37)
    found, same = refine(weight, codes, encoding, spec, gram, rank=rank)
    assert same is encoding
    want = codes.astype(np.int64)
    low, high = spec.codes()
    for k in rank:
        losses = []
        for code in range(low, high + 1):
            tried = want.copy()
            tried[k] = code
            losses.append(loss_of(weight, tried, encoding, gram))
        want[k] = low + np.argmin(losses, axis=0)
    np.testing.assert_array_equal(found.astype(np.int64), want)


@each_spec
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**32 - 1), st.booleans())
def test_no_sweep_and_no_refit_raises_any_channels_loss(spec, rows, columns, seed, refit):
    weight, gram = layer(rows, columns, seed)
    codes, encoding, _ = round_to_nearest(weight, spec)
    before = loss_of(weight, codes, encoding, gram)
    for _ in range(3):
        codes, encoding = refine(weight, codes, encoding, spec, gram, refit=refit)
        after = loss_of(weight, codes, encoding, gram)
        assert (after <= before * (1 + 1e-6) + 1e-9).all()
        before = after
    low, high = spec.codes()
    assert low <= codes.astype(int).min() and codes.astype(int).max() <= high
    assert encoding.scale.dtype == np.float32 and np.isfinite(encoding.scale).all()


@pytest.mark.parametrize("spec", SPECS[:3], ids=str)
def test_refitted_scales_solve_the_least_squares_problem(spec):
    weight, gram = layer(24, 4, 5)
    codes, encoding, _ = round_to_nearest(weight, spec)
    refitted = refit_scales(weight, codes, encoding, spec, gram)
    steps, which = steps_of(codes, encoding, 24)
    root = np.linalg.cholesky(gram).T
    for n in range(4):
        design = np.zeros((24, len(encoding.scale)))
        design[np.arange(24), which] = steps[:, n]
        want, *_ = np.linalg.lstsq(root @ design, root @ weight[:, n], rcond=None)
        np.testing.assert_allclose(refitted.scale[:, n], want, rtol=1e-5)
    assert (refitted.scale != encoding.scale).any()
    assert refitted.block == encoding.block


def test_a_group_of_zeros_and_a_useless_fit_keep_their_scales():
    weight, gram = layer(16, 2, 6)
    weight[:8, 0] = 0
    spec = SPECS[0]
    codes, encoding, _ = round_to_nearest(weight, spec)
    refitted = refit_scales(weight, codes, encoding, spec, gram)
    assert refitted.scale[0, 0] == encoding.scale[0, 0] == 1
    # Codes of the opposite sign would need a negative scale.
    against = refit_scales(-weight, codes, encoding, spec, gram)
    np.testing.assert_array_equal(against.scale, encoding.scale)


def test_float32_does_as_well_as_float64():
    weight, gram = layer(150, 8, 7)
    spec = Spec("int4", axis=0, block=32)
    codes, encoding, _ = round_to_nearest(weight, spec)
    losses = []
    for dtype in (np.float32, np.float64):
        found, at = refine(weight.astype(dtype), codes, encoding, spec, gram, sweeps=3, refit=True)
        losses.append(loss_of(weight, found, at, gram).sum())
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
