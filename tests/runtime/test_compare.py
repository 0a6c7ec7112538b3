import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qgraph.errors import DataError
from qgraph.runtime.compare import Comparison, OutputComparison, compare, looks_like_logits

ARRAYS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=5),
    elements=st.floats(-1000, 1000, width=32),
)


def one(ref: Any, cand: Any) -> OutputComparison:
    (result,) = compare({"y": np.asarray(ref)}, {"y": np.asarray(cand)})
    return result


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@given(ARRAYS, st.floats(1e-3, 10), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_follows_the_formulas(ref: np.ndarray, size: float, seed: int) -> None:
    noise = np.random.default_rng(seed).standard_normal(ref.shape) * size
    cand = (ref + noise).astype(np.float32)
    r, c = ref.astype(np.float64), cand.astype(np.float64)
    got = one(ref, cand)
    error = float(((r - c) ** 2).sum())
    if (r**2).sum() > 0 and error > 0:
        assert got.sqnr_db == pytest.approx(10 * math.log10((r**2).sum() / error))
        norm = np.linalg.norm(r) * np.linalg.norm(c)
        assert got.cosine == pytest.approx((r * c).sum() / norm, abs=1e-12)
    assert got.max_abs == pytest.approx(np.abs(r - c).max())
    scale = np.ptp(r) or np.abs(r).max()
    if scale and error:
        assert got.max_relative == pytest.approx(np.abs(r - c).max() / scale)
    assert got.exact_share == np.mean(ref == cand)


@given(ARRAYS)
@settings(deadline=None)
def test_equal_arrays(ref: np.ndarray) -> None:
    got = one(ref, ref.copy())
    assert (got.sqnr_db, got.cosine, got.max_abs, got.max_relative) == (math.inf, 1.0, 0.0, 0.0)
    assert got.exact_share == 1.0 and got.elements == ref.size


@given(ARRAYS, st.integers(1, 4))
@settings(deadline=None)
def test_adding_samples_is_comparing_their_concatenation(ref: np.ndarray, parts: int) -> None:
    cand = np.round(ref / 3).astype(np.float32) * 3
    streamed = Comparison()
    pieces = [p for p in np.array_split(np.arange(len(ref)), parts) if len(p)]
    for piece in pieces:
        streamed.add({"y": ref[piece]}, {"y": cand[piece]})
    (got,), want = streamed.results(), one(ref, cand)
    assert got.samples == len(pieces)
    for field in ("sqnr_db", "cosine", "max_abs", "max_relative", "argmax_agreement"):
        have, expected = getattr(got, field), getattr(want, field)
        assert have == (None if expected is None else pytest.approx(expected, rel=1e-9))
    assert (got.exact_share, got.elements) == (want.exact_share, want.elements)


def test_arrays_larger_than_a_chunk(rng: np.random.Generator) -> None:
    ref = rng.standard_normal(2_500_001).astype(np.float32)
    cand = ref.copy()
    cand[-1] += 1
    got = one(ref, cand)
    assert got.max_abs == pytest.approx(1, rel=1e-6)
    assert got.exact_share == 1 - 1 / ref.size
    signal, noise = float((ref.astype(np.float64) ** 2).sum()), float(cand[-1] - ref[-1]) ** 2
    assert got.sqnr_db == pytest.approx(10 * math.log10(signal / noise))


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("ref", "cand", "mismatch"),
    [
        ([1, NAN, 2], [1, NAN, 2], 0),
        ([1, INF, 2], [1, INF, 2], 0),
        ([1, 2, 3], [1, NAN, 3], 1),
        ([1, NAN, 3], [1, 2, 3], 1),
        ([1, INF, 3], [1, -INF, 3], 1),
        ([1, INF, 3], [1, NAN, 3], 1),
        ([1, 2, 3], [1, INF, NAN], 2),
    ],
)
def test_nonfinite_values_are_counted_and_never_ignored(
    ref: list[float], cand: list[float], mismatch: int
) -> None:
    got = one(floats(*ref), floats(*cand))
    assert got.nonfinite_mismatch == mismatch
    assert got.nonfinite_reference == sum(not math.isfinite(v) for v in ref)
    assert got.nonfinite_candidate == sum(not math.isfinite(v) for v in cand)
    if mismatch:
        assert (got.sqnr_db, got.max_abs, got.max_relative) == (-INF, INF, INF)
        assert got.cosine is not None and math.isnan(got.cosine)
    else:
        assert (got.sqnr_db, got.cosine, got.exact_share) == (INF, 1.0, 1.0)


def test_one_bad_sample_spoils_all_of_them() -> None:
    comparison = Comparison()
    comparison.add({"y": floats(1, 2)}, {"y": floats(1, NAN)})
    comparison.add({"y": floats(1, 2)}, {"y": floats(1, 2)})
    assert comparison.results()[0].sqnr_db == -INF


def test_zero_references() -> None:
    zero = floats(0, 0)
    assert one(zero, zero).cosine == 1.0
    wrong = one(zero, floats(0, 1))
    assert (wrong.sqnr_db, wrong.cosine, wrong.max_relative) == (-INF, 0.0, INF)


def test_constant_reference_is_judged_by_its_magnitude() -> None:
    assert one(floats(-4), floats(-3)).max_relative == 0.25


def test_argmax_agreement() -> None:
    ref = np.array([[0, 1, 2], [5, 1, 2], [0, 9, 2], [1, 1, 0]], np.float32)
    cand = np.array([[0, 1, 2], [1, 5, 2], [0, 9, 2], [1, 1, 0]], np.float32)
    got = one(ref, cand)
    assert (got.argmax_agreement, got.argmax_rows) == (0.75, 4)
    assert one(ref[None], cand[None]).argmax_agreement == 0.75


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((2, 3), np.float32, True),
        ((2, 3), ml_dtypes.bfloat16, True),
        ((2, 4, 10), np.float16, True),
        ((2, 2), np.float32, False),
        ((10,), np.float32, False),
        ((1, 3, 8, 8), np.float32, False),
        ((2, 3), np.int64, False),
    ],
)
def test_what_looks_like_logits(shape: tuple[int, ...], dtype: Any, expected: bool) -> None:
    value = np.zeros(shape, dtype)
    assert looks_like_logits(value) is expected
    assert (one(value, value).argmax_agreement is not None) is expected


def test_last_axis_that_changes_is_no_class_axis() -> None:
    comparison = Comparison()
    for width in (5, 6):
        value = np.ones((1, width), np.float32)
        comparison.add({"y": value}, {"y": value})
    got = comparison.results()[0]
    assert got.argmax_agreement is None and got.argmax_rows == 0 and got.elements == 11


def test_integers_booleans_and_strings_are_compared_exactly() -> None:
    ints = one(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 9]))
    assert (ints.exact_share, ints.max_abs, ints.sqnr_db) == (0.75, 5.0, None)
    big = one(np.array([2**62]), np.array([2**62 + 1]))
    assert (big.exact_share, big.max_abs) == (0.0, 1.0)
    extremes = one(np.array([2**64 - 1], np.uint64), np.array([0], np.uint64))
    assert extremes.max_abs == pytest.approx(2.0**64)
    bools = one(np.array([True, False]), np.array([True, True]))
    assert (bools.exact_share, bools.max_abs, bools.dtype) == (0.5, None, "bool")
    words = one(np.array(["a", "b"], object), np.array(["a", "c"]))
    assert (words.exact_share, words.dtype) == (0.5, "string")


def test_float16_and_bfloat16_are_computed_in_float64() -> None:
    ref = np.full(4096, 300.0, np.float16)
    cand = np.full(4096, 300.25, np.float16)
    assert one(ref, cand).sqnr_db == pytest.approx(20 * math.log10(1200))
    wide = np.array([1, 2, 256], ml_dtypes.bfloat16)
    assert one(wide.astype(np.float32), wide).sqnr_db == INF


def test_empty_outputs() -> None:
    got = one(np.zeros((0, 5), np.float32), np.zeros((0, 5), np.float32))
    assert (got.elements, got.exact_share, got.sqnr_db, got.argmax_agreement) == (0, 1.0, INF, None)


@pytest.mark.parametrize(
    ("ref", "cand", "message"),
    [
        ({"y": floats(1)}, {}, "lacks output 'y'"),
        ({"y": floats(1)}, {"y": floats(1), "z": floats(1)}, "further output 'z'"),
        (
            {"y": floats(1)},
            {"y": floats(1, 2)},
            r"output 'y': shape \[2\], the reference has \[1\]",
        ),
        ({"y": floats(1)}, {"y": np.array([1])}, "int64 against float32"),
        ({"y": [floats(1)]}, {"y": [floats(1)]}, "output 'y': a list can't be compared"),
        ({"y": np.array([1j])}, {"y": np.array([1j])}, "complex"),
    ],
)
def test_what_can_not_be_compared(ref: Any, cand: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compare(ref, cand)


def test_later_samples_must_have_the_same_outputs() -> None:
    comparison = Comparison()
    comparison.add({"y": floats(1)}, {"y": floats(1)})
    with pytest.raises(DataError, match="lacks output 'y'"):
        comparison.add({"z": floats(1)}, {"z": floats(1)})
    with pytest.raises(DataError, match="int64 against float32"):
        comparison.add({"y": np.array([1])}, {"y": np.array([1])})


def test_json_has_no_infinities() -> None:
    data = one(floats(1, 2), floats(1, NAN)).as_json()
    assert json.loads(json.dumps(data, allow_nan=False))["sqnr_db"] == "-inf"
    assert data["cosine"] == "nan" and one(floats(1), floats(1)).as_json()["sqnr_db"] == "inf"
