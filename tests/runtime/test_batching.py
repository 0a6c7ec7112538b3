"""Requests of any length, against the same rows run one by one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_models import affine, text

from qgraph.errors import DataError, EngineError, UsageError
from qgraph.runtime import backend
from qgraph.runtime.batching import Batched

CPU = backend("onnxruntime-cpu")
W = np.array([2, 2, -1], np.float32)
FIXED = "g (float[4, 3] x, float[3] w) => (float[4, 3] y) { y = Mul(x, w) }"
# A fixed length is also that of `m`, which is batched then, and of nothing else.
TWO = "g (float[N, 3] x, float[N, 1] m, float[3] w) => (float[N, 3] y) { p = Mul(x, m) y = Mul(p, w) }"


def opened(body: str, size: int | None = None) -> Batched:
    return Batched(CPU.open(text(body).SerializeToString()), size)


def rows(count: int) -> np.ndarray:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3)


@given(st.integers(1, 20), st.sampled_from([None, 1, 3, 4, 7]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_number_of_rows(count: int, size: int | None, fixed: bool) -> None:
    with opened(FIXED if fixed else TWO, None if fixed else size) as session:
        x, m = rows(count), np.arange(count, dtype=np.float32)[:, None]
        feeds = {"x": x, "w": W} | ({} if fixed else {"m": m})
        want = x * W * (1 if fixed else m)
        np.testing.assert_array_equal(session.run(feeds)["y"], want)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.booleans())
@settings(max_examples=20, deadline=None)
def test_requests_get_their_own_rows_back(counts: list[int], fixed: bool) -> None:
    with opened(FIXED if fixed else FIXED.replace("4, 3", "N, 3"), None if fixed else 5) as session:
        requests = [{"x": rows(n) + n, "w": W} for n in counts]
        for request, found in zip(requests, session.run_many(requests), strict=True):
            np.testing.assert_array_equal(found["y"], request["x"] * W)
        assert session.run_many([]) == []


def test_nothing_is_cut_that_fits() -> None:
    with opened(FIXED.replace("4, 3", "N, 3"), 8) as session:
        assert session.run({"x": rows(0), "w": W})["y"].shape == (0, 3)
        assert [str(info) for info in session.inputs] == ["x float32 [batch, 3]", "w float32 [3]"]
        assert [str(info) for info in session.outputs] == ["y float32 [batch, 3]"]


def test_dlpack_and_background_requests_go_the_same_way() -> None:
    with opened(FIXED) as session:
        feeds = {"x": rows(6), "w": W}
        want = feeds["x"] * W
        np.testing.assert_array_equal(np.from_dlpack(session.run_dlpack(feeds)["y"]), want)
        np.testing.assert_array_equal(session.submit(feeds).result(10)["y"], want)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": rows(3), "m": np.ones((2, 1), np.float32), "w": W}, "differ in length: x 3, m 2"),
        ({"w": W}, "differ in length: none"),
    ],
)
def test_lengths_that_differ(feeds: dict[str, Any], message: str) -> None:
    with opened(TWO, 2) as session, pytest.raises(DataError, match=message):
        session.run(feeds)


def test_outputs_without_a_row_for_each_row() -> None:
    body = "g (float[N, 3] x) => (float[N, 3] y, float[1] s) { y = Neg(x) a = ReduceSum(x) s = Reshape(a, one) }"
    model = text(body.replace("{ y", "<int64[1] one = {1}> { y"))
    with Batched(CPU.open(model.SerializeToString()), 2) as session:
        with pytest.raises(EngineError, match=r"output 's' has shape \[1\] for 2 rows"):
            session.run({"x": rows(5)})
        assert session.run({"x": rows(5)}, ["y"])["y"].shape == (5, 3)
        assert session.run({"x": rows(2)})["s"].shape == (1,)


def test_what_can_not_be_batched() -> None:
    with pytest.raises(UsageError, match="no batch axis"):
        opened("g (float x) => (float y) { y = Neg(x) }")
    with pytest.raises(UsageError, match=r"batches of 3 rows do not fit x float32 \[4, 3\]; use 4"):
        opened(FIXED, 3)
    with pytest.raises(UsageError, match="give 1 or more"):
        Batched(CPU.open(affine().SerializeToString()), 0)
    with opened(FIXED) as session, pytest.raises(DataError, match="no rows"):
        session.run({"x": rows(0), "w": W})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"x": rows(1), "w": W * 2}, "input 'w': differs between requests"),
        ({"x": np.ones((1, 2), np.float32), "w": W}, "input 'x': requests differ in type or shape"),
        ({"x": rows(1)}, "input 'w': missing from a request"),
    ],
)
def test_requests_that_do_not_go_together(other: dict[str, Any], message: str) -> None:
    with opened(FIXED) as session, pytest.raises(DataError, match=message):
        session.run_many([{"x": rows(1), "w": W}, other])
