import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.encoding import Spec, dequantize
from qgraph.errors import UsageError
from qgraph.passes.weights import weight_quantizer
from qgraph.passes.weights.grid import CLIPPED
from qgraph.passes.weights.hqq import hqq, hqq_float
from qgraph.passes.weights.rtn import round_to_nearest

SPECS = [
    Spec("uint4", False, axis=0, block=16),
    Spec("int4", False, axis=0, block=10),
    Spec("uint2", False, axis=0, block=8),
    Spec("uint3", False, axis=1),
    Spec("uint8", False, axis=1),
]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


def heavy(rows, columns, seed):
    return np.random.default_rng(seed).standard_t(3, (rows, columns)).astype(np.float32)


def sums(weight, back, scale, block):
    """Sum of |error in steps|^0.7 of each group."""
    length = block[0] or len(weight)
    result = []
    for index, start in enumerate(range(0, len(weight), length)):
        part = slice(start, start + length)
        error = (weight[part].astype(np.float64) - back[part]) / scale[index]
        result.append((np.abs(error) ** 0.7).sum(axis=0))
    return np.array(result)


@each_spec
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_never_worse_than_round_to_nearest_in_its_own_norm(spec, rows, columns, seed):
    weight = heavy(rows, columns, seed)
    near, plain, _ = round_to_nearest(weight, spec)
    most = sums(weight, dequantize(near, plain), plain.scale, plain.block)
    # An exact rounding has an error of a few ulp, which the power 0.7 makes large.
    slack = 1e-3 * len(weight)
    codes, encoding, _ = hqq(weight, spec)
    np.testing.assert_array_equal(encoding.scale, plain.scale)
    whole = sums(weight, dequantize(codes, encoding), plain.scale, plain.block)
    assert (whole <= most + slack).all()
    floats = hqq_float(weight, spec)
    np.testing.assert_array_equal(floats.scale, plain.scale)
    assert (sums(weight, floats.dequantize(), plain.scale, plain.block) <= most + slack).all()
    low, high = spec.codes()
    assert low <= codes.astype(int).min() and codes.astype(int).max() <= high
    assert floats.codes.max() <= high - low


def naive_zero(w, scale, zero, last):
    """The two alternating steps as published, on one group, in float64."""
    beta, found = 10.0, []
    for turn in range(21):
        codes = np.clip(np.rint(w / scale + zero), 0, last)
        error = w / scale - codes + zero
        found.append(((np.abs(error) ** 0.7).sum(), zero))
        if turn == 20:
            break
        kept = [np.sign(e) * max(0.0, abs(e) - abs(e) ** -0.3 / beta) if e else 0 for e in error]
        zero = float(np.mean(codes - w / scale + np.array(kept)))
        beta *= 1.01
    return min(found)[1]


def test_the_zero_point_is_that_of_the_published_steps():
    weight = heavy(32, 6, 3).astype(np.float64)
    result = hqq_float(weight, Spec("uint4", False, axis=1))
    for n in range(6):
        w = weight[:, n]
        low, high = min(w.min(), 0), max(w.max(), 0)
        scale = float(np.float32((high - low) / 15))
        want = naive_zero(w, scale, float(np.rint(-low / scale)), 15)
        assert result.zero_point[0, n] == pytest.approx(want, rel=1e-5, abs=1e-5)
    assert (result.zero_point % 1 != 0).any()


def test_float_zero_points_lower_the_error_of_few_bits():
    ratios = []
    for seed in range(8):
        weight = heavy(128, 8, seed)
        spec = Spec("uint2", False, axis=0, block=64)
        ratios.append(hqq_float(weight, spec).loss / round_to_nearest(weight, spec)[2])
    assert np.max(ratios) < 1 and np.mean(ratios) < 0.97


def test_floats_are_what_they_say():
    weight = heavy(40, 4, 5)
    result = hqq_float(weight, Spec("int4", False, axis=0, block=16), search=CLIPPED)
    assert result.codes.dtype == np.uint8 and result.scale.shape == (3, 4)
    want = np.empty((40, 4))
    for k in range(40):
        want[k] = (result.codes[k] - result.zero_point[k // 16]) * result.scale[k // 16]
    np.testing.assert_allclose(result.dequantize(), want, rtol=1e-6)
    assert result.bits() == 4 + 64 * 12 / 160
    error = ((weight - result.dequantize()) ** 2).sum() / (weight**2).sum()
    assert result.loss == pytest.approx(float(error), rel=1e-5)


def test_refusals_and_registration():
    weight = heavy(8, 2, 0)
    for solve in (hqq, hqq_float):
        with pytest.raises(UsageError, match="symmetric"):
            solve(weight, Spec("int4", axis=1))
        with pytest.raises(UsageError, match="axis=1"):
            solve(weight, Spec("uint4", False))
    assert weight_quantizer("hqq") is hqq
