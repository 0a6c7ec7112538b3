"""What every session does beside `run`: DLPack, buffers, background requests, batches, closing."""

import gc
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from runtime_models import affine, bf16, qdq_conv, small_cnn, text

from qgraph.errors import DataError, EngineError, QGraphError, UsageError
from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions, Session
from qgraph.runtime.session import SessionBase
from qgraph.runtime.wrapped import OnDevice, OnOwnFeeds, Wrapped

CPU = backend("onnxruntime-cpu")
X, W = np.array([[1, -2, 3]], np.float32), np.array([2, 2, -1], np.float32)
FEEDS = {"x": X, "w": W}


class Foreign:
    """An array of another library, as far as DLPack shows it."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


class Slow(SessionBase):
    """Runs until it is told to stop."""

    def __init__(self) -> None:
        super().__init__("slow", (), ())
        self.begun, self.go_on, self.released = threading.Event(), threading.Event(), False

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        with self._running():
            self.begun.set()
            assert self.go_on.wait(10) and not self.released
            return dict(feeds)

    def _release(self) -> None:
        self.released = True


@pytest.fixture
def session() -> Any:
    with CPU.open(affine().SerializeToString()) as opened:
        yield opened


@pytest.fixture(params=["engine", "wrapped"])
def either(request: Any, session: Session) -> Session:
    return session if request.param == "engine" else Wrapped(session)


# -- DLPack ----------------------------------------------------------------------------------------


def test_other_libraries_arrays_are_taken_and_handed_out(either: Session) -> None:
    want = either.run(FEEDS)
    for feeds in (
        {"x": Foreign(X), "w": Foreign(W)},
        {"x": ort.OrtValue.ortvalue_from_numpy(X), "w": W},
    ):
        got, host = either.run_dlpack(feeds), either.run(feeds)
        assert list(got) == list(want) and isinstance(either, Session)
        for name, array in want.items():
            np.testing.assert_array_equal(np.from_dlpack(got[name]), array)
            np.testing.assert_array_equal(host[name], array)
            assert got[name].__dlpack_device__() == (1, 0)
    assert list(either.run_dlpack(FEEDS, ["z"])) == ["z"]


def test_nothing_is_copied_on_the_way_in_or_out() -> None:
    """Identity hands its input out only if both are where the caller's arrays are."""
    with CPU.open(text("g (float[N] x) => (float[N] y) { y = Neg(x) }").SerializeToString()) as s:
        x = np.arange(4, dtype=np.float32)
        bound = s.bind({"x": x})
        inside = np.from_dlpack(bound.inputs["x"])
        assert inside.ctypes.data == bound.inputs["x"].data_ptr() != x.ctypes.data  # type: ignore[attr-defined]
        out = s.run_dlpack({"x": Foreign(x)})["y"]
        assert np.from_dlpack(out).ctypes.data == out.data_ptr()  # type: ignore[attr-defined]
    from qgraph.runtime.ort_values import from_feed

    info = s.inputs[0]
    assert from_feed(info, Foreign(x)).data_ptr() == from_feed(info, x).data_ptr() == x.ctypes.data


def test_results_outlive_the_session() -> None:
    session = CPU.open(affine().SerializeToString())
    array = np.from_dlpack(session.run_dlpack(FEEDS)["z"])
    kept = array.copy()
    session.close()
    gc.collect()
    np.testing.assert_array_equal(array, kept)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (Foreign(X.astype(np.float64)), r"input 'x': dtype is float64, expected float32"),
        (Foreign(X[:, :2].copy()), r"input 'x': shape is \[1, 2\], expected \[N, 3\]"),
        (Foreign(np.ones((3, 2), np.float32).T), r"input 'x': can't be taken without a copy"),
        (X[0], r"input 'x': shape is \[3\]"),
    ],
)
def test_what_does_not_fit_is_named(session: Session, x: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        session.run_dlpack({"x": x, "w": W})
    with pytest.raises(DataError, match="input 'w': missing"):
        session.run_dlpack({"x": X})
    with pytest.raises(UsageError, match="unknown output"):
        session.run_dlpack(FEEDS, ["v"])


def test_memory_of_a_gpu_is_refused_by_run_with_the_way_out(either: Session) -> None:
    with pytest.raises(DataError, match=r"input 'x': lies on a device .*kind 2.*run_dlpack"):
        either.run({"x": Foreign(X, (2, 0)), "w": W})


def test_small_floats() -> None:
    model = text("g (bfloat16[N] x) => (bfloat16[N] y) { y = Identity(x) }").SerializeToString()
    x = bf16([1, 2.5])
    with CPU.open(model) as session:
        value = session.run_dlpack({"x": x})["y"]
        again = session.run_dlpack({"x": value})["y"]
        assert again.data_type() == "tensor(bfloat16)"  # type: ignore[attr-defined]
        bound = session.bind({"x": value})
        assert bound.numpy("y").dtype == ml_dtypes.bfloat16  # type: ignore[attr-defined]
        np.testing.assert_array_equal(bound.numpy("y"), x)  # type: ignore[attr-defined]


def test_strings_have_no_dlpack() -> None:
    model = text("g (string[N] s) => (string[N] t) { t = Identity(s) }").SerializeToString()
    words = np.array(["a", "b"], object)
    with CPU.open(model) as session:
        with pytest.raises(EngineError, match="output 't' holds strings"):
            session.run_dlpack({"s": words})
        assert list(session.run({"s": words})["t"]) == ["a", "b"]
    model = text("g (string[N] s) => (int64[1] n) { n = Shape(s) }").SerializeToString()
    with CPU.open(model) as session, pytest.raises(DataError, match="input 's': strings have no"):
        session.bind({"s": words})


def test_empty_batches(session: Session) -> None:
    empty = {"x": np.zeros((0, 3), np.float32), "w": W}
    assert np.from_dlpack(session.run_dlpack(empty)["y"]).shape == (0, 3)
    bound = session.bind(empty)
    bound.run()
    assert np.from_dlpack(bound.outputs["y"]).shape == (0, 3)


# -- buffers that stay -----------------------------------------------------------------------------


def test_what_is_written_into_a_buffer_is_what_runs(either: Session) -> None:
    x = X.copy()
    bound = either.bind({"x": x, "w": W})
    first = np.from_dlpack(bound.outputs["z"]).copy()
    np.testing.assert_array_equal(first, -(X * W))
    x[:] = 9
    bound.run()
    np.testing.assert_array_equal(np.from_dlpack(bound.outputs["z"]), first)
    held = bound.inputs["x"]
    writable = held if isinstance(held, np.ndarray) else _view(held)
    writable[:] = 5
    bound.run()
    np.testing.assert_array_equal(np.from_dlpack(bound.outputs["z"]), -(5 * np.ones((1, 3)) * W))


def _view(value: Any) -> np.ndarray:
    """Writable memory of a value on the host, as torch.from_dlpack gives it."""
    import ctypes

    size = int(np.prod(value.shape()))
    return np.ctypeslib.as_array((ctypes.c_float * size).from_address(value.data_ptr()))


def test_buffers_take_feeds_of_their_shape_only(either: Session) -> None:
    bound = either.bind(FEEDS)
    bound.update({"x": X * 2})
    bound.run()
    np.testing.assert_array_equal(np.from_dlpack(bound.outputs["z"]), -(2 * X * W))
    with pytest.raises(DataError, match=r"input 'x': is bound with shape \[1, 3\], not \[2, 3\]"):
        bound.update({"x": np.ones((2, 3), np.float32)})
    with pytest.raises(DataError, match="input 'v': the model has no such input"):
        bound.update({"v": X})


def test_buffers_of_a_closed_session(session: Session) -> None:
    bound = session.bind(FEEDS)
    session.close()
    with pytest.raises(EngineError, match="closed"):
        bound.run()


def test_outputs_that_change_their_shape_have_no_fixed_buffer() -> None:
    model = text("g (float[N] x) => (int64[1, M] y) { y = NonZero(x) }").SerializeToString()
    with CPU.open(model) as session:
        bound = session.bind({"x": np.array([1, 0, 1], np.float32)})
        bound.update({"x": np.array([1, 1, 1], np.float32)})
        with pytest.raises(EngineError, match="failed while running"):
            bound.run()


def test_on_device_runs_the_buffers(session: Session) -> None:
    with OnDevice(session, FEEDS) as timed:
        assert timed.run({}) == {}
        assert timed.device == "cpu"


# -- threads ---------------------------------------------------------------------------------------


def test_submitted_requests_come_back_each_with_its_own_result(either: Session) -> None:
    futures = [either.submit({"x": X * step, "w": W}) for step in range(40)]
    for step, future in enumerate(futures):
        np.testing.assert_array_equal(future.result(10)["z"], -(X * step * W))
    with pytest.raises(DataError, match="missing"):
        either.submit({}).result(10)


def test_every_way_to_run_at_once_from_many_threads(session: Session) -> None:
    def work(seed: int) -> None:
        bound = session.bind(FEEDS)
        for step in range(25):
            x = np.full((4, 3), seed * 100 + step, np.float32)
            feeds = {"x": x, "w": W}
            found = [session.run(feeds)["z"], np.from_dlpack(session.run_dlpack(feeds)["z"])]
            found.append(session.submit(feeds).result(10)["z"])
            bound.update({"x": x[:1]})
            bound.run()
            found.append(np.repeat(np.from_dlpack(bound.outputs["z"]), 4, 0))
            for z in found:
                np.testing.assert_array_equal(z, -(x * W))

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(work, seed) for seed in range(4)]:
            each.result(60)


def test_close_waits_for_what_runs_and_fails_what_has_not_begun() -> None:
    session = Slow()
    running = [session.submit({"x": n}) for n in range(5)]
    assert session.begun.wait(10)
    closing = threading.Thread(target=session.close)
    closing.start()
    while not session._closed:
        time.sleep(0.001)
    with pytest.raises(EngineError, match="the session is closed; open it again"):
        session.submit({})
    with pytest.raises(EngineError, match="closed"):
        session.run({})
    assert closing.is_alive() and not session.released
    session.go_on.set()
    closing.join(10)
    assert session.released
    done = [future for future in running if future.exception(10) is None]
    failed = [future.exception(10) for future in running if future not in done]
    assert 1 <= len(done) <= session.workers
    assert failed and all(isinstance(error, EngineError) for error in failed)
    session.close()


def test_a_result_may_close_its_own_session() -> None:
    session = Slow()
    session.go_on.set()
    future = session.submit({"x": 1})
    future.add_done_callback(lambda _: session.close())
    assert future.result(10) == {"x": 1}
    for _ in range(1000):
        if session.released:
            break
        time.sleep(0.001)
    assert session.released


# -- warm-up and profile ---------------------------------------------------------------------------


def test_warmup_and_profile() -> None:
    with CPU.open(small_cnn().SerializeToString(), EngineOptions(profile=True)) as session:
        session.warmup()
        feeds = {"x": np.ones((2, 3, 16, 16), np.float32)}
        session.warmup(feeds, runs=1)
        ops = session.profile(feeds, runs=2)
        assert {"Conv"} <= {op.op_type for op in ops}
        assert all(op.time_us is not None for op in ops)
        with pytest.raises(UsageError, match="warmup of 0 runs"):
            session.warmup(runs=0)
    with (
        CPU.open(qdq_conv().SerializeToString()) as session,
        pytest.raises(UsageError, match="keeps no profile"),
    ):
        session.profile({"x": np.ones((1, 3, 8, 8), np.float32)})


def test_own_feeds_whatever_is_given(session: Session) -> None:
    own = OnOwnFeeds(session, FEEDS)
    np.testing.assert_array_equal(own.run({})["z"], -(X * W))


def test_errors_of_all_kinds_are_ours(session: Session) -> None:
    for call in (session.run, session.run_dlpack, session.bind):
        with pytest.raises(QGraphError):
            call({"x": "text", "w": W})
