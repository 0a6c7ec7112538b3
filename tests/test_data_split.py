"""Splits are deterministic and disjoint, and batches keep order and content."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.data import DataSet, limits, open_data
from qgraph.errors import DataError, UsageError

X = [SimpleNamespace(name="x", dtype="float32", shape=("n", None))]
SOURCES: dict[str, Callable[[int], Any]] = {
    "array": lambda n: np.arange(n, dtype=np.float32)[:, None],
    "list": lambda n: [{"x": np.float32([i])} for i in range(n)],
    "function": lambda n: lambda: ({"x": np.float32([i])} for i in range(n)),
    "generator": lambda n: ({"x": np.float32([i])} for i in range(n)),
}
shares = st.one_of(st.floats(0.01, 0.99), st.integers(1, 40))


def ids(data: Any) -> list[int]:
    return [int(value) for sample in data for value in sample["x"][:, 0]]


def sides(data: DataSet, share: float, held_first: bool) -> tuple[list[int], list[int]]:
    calibration, held = data.split(share)
    if held_first:
        second = ids(held)
        return ids(calibration), second
    return ids(calibration), ids(held)


@pytest.mark.parametrize("kind", SOURCES)
@settings(max_examples=80, deadline=None)
@given(n=st.integers(2, 60), share=shares, held_first=st.booleans())
def test_split_is_disjoint_complete_ordered_and_repeatable(
    kind: str, n: int, share: float, held_first: bool
) -> None:
    try:
        calibration, held = sides(open_data(SOURCES[kind](n), X), share, held_first)
    except DataError:
        assert kind == "array" and isinstance(share, int) and share >= n
        return
    assert sorted(calibration + held) == list(range(n))
    assert calibration == sorted(calibration) and held == sorted(held)
    assert (calibration, held) == sides(open_data(SOURCES[kind](n), X), share, not held_first)
    if kind == "array":
        wanted = share if isinstance(share, int) else min(max(1, round(share * n)), n - 1)
        assert len(held) == wanted
        # Evenly spread: no gap between neighbours is two steps wider than another.
        gaps = np.diff(held)
        assert len(held) < 2 or gaps.max() - gaps.min() <= 1
    elif isinstance(share, int):
        assert 1 <= len(held) <= share


@pytest.mark.parametrize("kind", ["list", "generator", "function"])
def test_unknown_length_holds_out_about_the_share(kind: str) -> None:
    _, held = open_data(SOURCES[kind](100), X).split(0.2)
    assert ids(held) == list(range(1, 100, 5))
    _, held = open_data(SOURCES[kind](1000), X, samples=100).split(10)
    assert ids(held) == list(range(1, 100, 10))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(4, 40), first=st.integers(1, 3), second=st.floats(0.1, 0.9))
def test_a_side_can_be_split_again(n: int, first: int, second: float) -> None:
    rest, held = open_data(SOURCES["array"](n), X).split(first)
    if rest.count == 1:
        return
    left, right = rest.split(second)
    assert sorted(ids(left) + ids(right) + ids(held)) == list(range(n))
    assert (left.count, right.count, held.count) == tuple(map(len, map(ids, (left, right, held))))


def test_interleaved_readers_of_a_generator_get_their_own_samples() -> None:
    calibration, held = open_data(SOURCES["generator"](10), X).split(0.5)
    a, b = iter(calibration), iter(held)
    got = [ids([next(a)]), ids([next(b)]), ids([next(b)]), ids([next(a)]), ids([next(a)])]
    assert got == [[0], [1], [3], [2], [4]]
    assert ids(held) == [1, 3, 5, 7, 9]  # kept, so it reads again
    assert ids(held) == [1, 3, 5, 7, 9] and ids(a) == [6, 8]
    with pytest.raises(DataError, match="can be read only once"):
        ids(calibration)


def test_samples_held_out_of_a_generator_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "buffer_bytes", lambda: 40)  # ten float32 values
    _, held = open_data(SOURCES["generator"](30), X).split(0.5)
    with pytest.raises(DataError, match="keeps more than 40 bytes in memory"):
        ids(held)
    calibration, held = open_data(SOURCES["generator"](40), X).split(0.2)
    assert len(ids(calibration)) == 32 and len(ids(held)) == 8  # read in the cheap order


def test_an_error_reaches_both_sides_of_a_generator() -> None:
    def broken() -> Iterator[dict[str, Any]]:
        for i in range(6):
            yield {"x": np.float32([i if i < 5 else np.nan])}

    calibration, held = open_data(broken(), X).split(0.5)
    for side in (calibration, held):
        with pytest.raises(DataError, match="sample 5, input 'x': has NaN"):
            ids(side)


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_one_sample_can_not_be_split(kind: str) -> None:
    calibration, held = open_data(SOURCES[kind](1), X).split(0.2)
    assert ids(calibration) == [0]
    with pytest.raises(DataError, match="no samples left"):
        ids(held)
    with pytest.raises(DataError, match="has 1 samples, too few to hold out"):
        open_data(SOURCES["array"](1), X).split(0.2)


@pytest.mark.parametrize("share", [0, -1, 1.0, 0.0, -0.5, 1.5, True, float("nan")])
def test_senseless_shares_are_usage_errors(share: float) -> None:
    with pytest.raises(UsageError, match="can't hold out"):
        open_data(SOURCES["array"](4), X).split(share)


def test_split_reads_no_more_of_a_source_than_it_uses() -> None:
    pulled = []

    def endless() -> Iterator[dict[str, Any]]:
        while True:
            pulled.append(0)
            yield {"x": np.float32([len(pulled)])}

    calibration, held = open_data(endless(), X, samples=10).split(0.5)
    assert len(ids(calibration)) == len(ids(held)) == 5 and len(pulled) == 10


@settings(max_examples=60, deadline=None)
@given(widths=st.lists(st.integers(1, 3), min_size=1, max_size=25), size=st.integers(1, 9))
def test_batches_keep_order_and_content(widths: list[int], size: int) -> None:
    rows = [np.full(width, index, np.float32) for index, width in enumerate(widths)]
    batches = [batch["x"] for batch in open_data({"x": rows}, X).batches(size)]
    flat = [row for batch in batches for row in batch]
    assert len(flat) == len(rows)
    assert all(np.array_equal(a, b) for a, b in zip(flat, rows, strict=True))
    assert all(len(batch) <= size for batch in batches)
    for left, right in pairwise(batches):  # as full as they can be
        assert len(left) == size or left.shape[1] != right.shape[1]


def test_batches_leave_a_fixed_batch_alone() -> None:
    fixed = [SimpleNamespace(name="x", dtype="float32", shape=(2, 1))]
    shapes = [b["x"].shape for b in open_data(SOURCES["array"](6), fixed).batches(4)]
    assert shapes == [(2, 1)] * 3
    with pytest.raises(UsageError, match="below 1"):
        open_data(SOURCES["array"](6), X).batches(0)


def test_a_source_that_changes_is_noticed() -> None:
    rng = np.random.default_rng()
    data = open_data(lambda: ({"x": rng.random(1)} for _ in range(4)), X)
    list(data)
    with pytest.raises(DataError, match="gives other samples than the first time"):
        list(data)
    shared = SOURCES["generator"](3)
    exhausted = open_data(lambda: shared, X)
    list(exhausted)
    with pytest.raises(DataError, match="gives no samples when it is read again"):
        list(exhausted)
