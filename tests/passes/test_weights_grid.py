"""How scales are chosen, and round to nearest with onnxruntime's signed scale."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.encoding import Spec, dequantize, encode_array, quantize
from qgraph.errors import UsageError
from qgraph.passes.weights.clipped import clipped_rounding
from qgraph.passes.weights.grid import (
    CLIPPED,
    FULL,
    SHARES,
    RangeSearch,
    fit,
    round_to,
    simulate,
)
from qgraph.passes.weights.loss import layer_loss, relative_loss
from qgraph.passes.weights.rtn import round_to_nearest

SIGNED = RangeSearch(SHARES, norm=2.4, signed=True)
SPECS = [
    Spec("int4", axis=0, block=8),
    Spec("uint4", axis=0, block=8),
    Spec("uint4", False, axis=0, block=7),
    Spec("int8", axis=1, narrow=True),
    Spec("int2", axis=0, block=4),
    Spec("uint2", False, axis=0, block=4),
    Spec("int3", axis=1),
    Spec("uint3", False, axis=1),
    Spec("int4"),
]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


def heavy(rows, columns, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_t(3, (rows, columns)).astype(np.float32)


def gram_of(rows, seed):
    x = np.random.default_rng(seed).standard_normal((2 * rows, rows)) @ np.diag(
        np.logspace(-1, 1, rows)
    )
    return x.T @ (x + 0.5 * x.mean(axis=1, keepdims=True))


@each_spec
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_full_range_is_round_to_nearest(spec, rows, columns, seed):
    weight = heavy(rows, columns, seed)
    want = encode_array(weight, spec)
    found = fit(weight, spec)
    np.testing.assert_array_equal(found.scale, want.scale)
    np.testing.assert_array_equal(found.zero_point, want.zero_point)
    assert found.block == want.block
    codes = round_to(weight, found, spec)
    np.testing.assert_array_equal(codes.astype(int), quantize(weight, want).astype(int))
    for search in (FULL, CLIPPED):
        encoding = fit(weight, spec, search)
        back = dequantize(round_to(weight, encoding, spec), encoding)
        np.testing.assert_array_equal(simulate(weight, spec, search), back)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_a_signed_scale_is_onnxruntimes_own(bits, block):
    pybind = pytest.importorskip("onnxruntime.capi._pybind_state")
    ours = pybind.__dict__[f"quantize_matmul_{bits}bits"]
    rows, columns = 3 * block, 5
    weight = heavy(rows, columns, bits)
    weight[:block, 0] = 0
    per_byte = 8 // bits
    packed = np.zeros((columns, 3, block // per_byte), np.uint8)
    scales = np.zeros(columns * 3, np.float32)
    zeros = np.zeros((columns, -(-3 // per_byte)), np.uint8)
    ours(packed, weight, scales, zeros, block, columns, rows, True)
    theirs = np.stack([(packed >> (bits * i)) & (2**bits - 1) for i in range(per_byte)], axis=-1)
    spec = Spec(f"int{bits}", axis=0, block=block)
    codes, encoding, _ = round_to_nearest(weight, spec, signed=True)
    want = scales.reshape(columns, 3).T
    live = want != 0  # onnxruntime gives an all-zero block scale 0
    np.testing.assert_allclose(encoding.scale[live], want[live], rtol=1e-6)
    # It multiplies by 1 / scale and rounds half up: a tie may fall to the other side.
    back = (theirs.reshape(columns, rows).T.astype(int) - 2 ** (bits - 1)).astype(np.float32)
    back *= np.repeat(want, block, axis=0)
    same = dequantize(codes, encoding) - back
    assert np.mean(np.abs(same) > 1e-5) < 0.01
    assert relative_loss(weight, dequantize(codes, encoding)) == pytest.approx(
        relative_loss(weight, back), rel=1e-3
    )


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["int2", "int3", "int4", "uint4", "int8"]), st.integers(0, 2**32 - 1))
def test_a_signed_scale_uses_the_lowest_code_for_the_largest_weight(dtype, seed):
    weight = heavy(16, 3, seed)
    codes, encoding, _ = round_to_nearest(weight, Spec(dtype, axis=0, block=16), signed=True)
    low, _ = Spec(dtype).codes()
    peak = np.abs(weight).argmax(axis=0)
    np.testing.assert_array_equal(codes.astype(int)[peak, range(3)], low)
    np.testing.assert_array_equal(np.sign(encoding.scale[0]), -np.sign(weight[peak, range(3)]))
    back = dequantize(codes, encoding)
    # The largest weight of the other sign may lie beyond the highest code, by half a step at most
    # of what it could be: |w| <= peak = 2^(b-1) steps, and the highest code is one less.
    assert (np.abs(weight - back) <= np.abs(encoding.scale) * (1 + 1e-5)).all()


@each_spec
@pytest.mark.parametrize("search", [CLIPPED, SIGNED, RangeSearch(SHARES)], ids=str)
def test_a_search_is_never_worse_than_the_full_range_in_its_norm(spec, search):
    for seed in range(5):
        weight = heavy(24, 6, seed)
        full = weight - simulate(weight, spec)
        found = weight - simulate(weight, spec, search)
        sums = [(np.abs(e.astype(np.float64)) ** search.norm).sum() for e in (full, found)]
        assert sums[1] <= sums[0] * (1 + 1e-6)


def test_the_signed_search_takes_the_best_of_all_candidates():
    weight = heavy(16, 8, 3)
    encoding = fit(weight, Spec("int4", axis=0, block=16), SIGNED)
    for n in range(8):
        w = weight[:, n].astype(np.float64)
        peak = w[np.abs(w).argmax()]
        tried = [sign * s * peak / 8 for sign in (-1, 1) for s in SHARES]
        tried += [s * abs(peak) / 7 for s in SHARES]
        errors = []
        for scale in tried:
            codes = np.clip(np.rint(w / scale), -8, 7)
            errors.append((np.abs(codes * scale - w) ** 2.4).sum())
        assert encoding.scale[0, n] == pytest.approx(tried[int(np.argmin(errors))], rel=1e-5)
    assert len(set(np.sign(encoding.scale[0]))) == 2


def test_an_asymmetric_spec_has_no_signed_scale():
    weight, spec = heavy(16, 8, 4), Spec("uint4", False, axis=1)
    np.testing.assert_array_equal(fit(weight, spec, SIGNED).scale, fit(weight, spec, CLIPPED).scale)


def test_blockwise_search_lowers_the_error_of_each_blocks_own_output():
    weight, gram = heavy(32, 6, 5), gram_of(32, 5)
    gram = (gram + gram.T) / 2
    spec = Spec("int4", axis=0, block=16)
    errors = {}
    for blockwise in (False, True):
        codes, encoding, _ = clipped_rounding(weight, spec, gram, blockwise=blockwise)
        error = weight - dequantize(codes, encoding)
        errors[blockwise] = np.array(
            [
                np.einsum("kn,kj,jn->n", error[b], gram[b, b], error[b])
                for b in (slice(0, 16), slice(16, 32))
            ]
        )
    assert (errors[True] <= errors[False] * (1 + 1e-5)).all()
    assert errors[True].sum() < 0.99 * errors[False].sum()
    codes, encoding, _ = clipped_rounding(weight, Spec("int4"), gram, blockwise=True)
    assert encoding.scale.shape == ()


def test_other_granularities_are_refused():
    for spec in (Spec("int4", axis=1, block=4), Spec("int4", axis=0), Spec("int4", axis=2)):
        for find in (fit, simulate):
            with pytest.raises(UsageError, match="axis=0 with a block of rows"):
                find(np.zeros((4, 4), np.float32), spec)


@each_spec
def test_zero_and_tiny_weights(spec):
    for search in (FULL, CLIPPED, SIGNED, RangeSearch(signed=True)):
        for value in (0.0, 1e-42, -1e-38, 3e38):
            weight = np.full((8, 2), value, np.float32)
            encoding = fit(weight, spec, search)
            assert np.isfinite(encoding.scale).all() and (encoding.scale != 0).all()
            if value == 0:
                assert not dequantize(round_to(weight, encoding, spec), encoding).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**32 - 1))
def test_layer_loss_is_the_squared_error_of_the_output(rows, seed):
    rng = np.random.default_rng(seed)
    x, error = rng.standard_normal((5, rows)), rng.standard_normal((rows, 3))
    assert layer_loss(error, x.T @ x) == pytest.approx(((x @ error) ** 2).sum(), rel=1e-9)
    assert layer_loss(error) == pytest.approx((error**2).sum(), rel=1e-12)
    single = layer_loss(error.astype(np.float32), (x.T @ x).astype(np.float32), np.dtype("f4"))
    assert single == pytest.approx(((x @ error) ** 2).sum(), rel=1e-2)


def test_a_zero_weight_has_no_relative_loss():
    assert relative_loss(np.zeros((3, 2)), np.zeros((3, 2))) == 0
    assert relative_loss(np.ones((3, 2)), np.zeros((3, 2))) == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_int8_per_column_is_within_half_a_step_of_every_weight(rows, columns, seed):
    weight = heavy(rows, columns, seed)
    codes, encoding, loss = round_to_nearest(weight, Spec("int8", axis=1, narrow=True))
    step = np.abs(weight).max(axis=0) / 127
    assert codes.dtype == np.int8 and encoding.scale.shape == (1, columns)
    assert (np.abs(dequantize(codes, encoding) - weight) <= step * 0.5001).all()
    assert loss < 1 / 127**2 * rows
