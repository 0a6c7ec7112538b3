"""Sessions that replay CUDA graphs, without a GPU.

The CPU provider takes and ignores the number of a graph, so that shapes, buffers, locks and falling
back run here as they do there; tests/gpu has what only a GPU shows.
"""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from runtime_models import affine, text

from qgraph.errors import DataError, EngineError, UsageError
from qgraph.runtime import ort_graphs
from qgraph.runtime.ort_graphs import GraphSession
from qgraph.runtime.ort_session import OrtSession, session_options

W = np.array([2, 2, -1], np.float32)


class Opening:
    """Opens a model in the CPU provider, and may refuse graphs as ONNX Runtime does."""

    def __init__(self, model: Any, *, refuse: str = "", ever: bool = False) -> None:
        self.model, self.refuse, self.ever = model.SerializeToString(), refuse, ever
        self.opened: list[tuple[bool, dict[str, int]]] = []
        self.sessions: list[OrtSession] = []

    def __call__(self, *, graph: bool, sizes: Mapping[str, int] | None = None) -> OrtSession:
        if graph and self.refuse and (self.ever or not sizes):
            raise EngineError(self.refuse)
        self.opened.append((graph, dict(sizes or {})))
        options = session_options(1)
        for name, size in (sizes or {}).items():
            options.add_free_dimension_override_by_name(name, size)
        made = OrtSession(
            self.model,
            options,
            engine="cpu",
            providers=["CPUExecutionProvider"],
            captures=graph,
        )
        self.sessions.append(made)
        return made


def rows(count: int, factor: float = 1) -> dict[str, np.ndarray]:
    return {"x": np.arange(count * 3, dtype=np.float32).reshape(count, 3) * factor, "w": W}


def same(session: GraphSession, feeds: dict[str, np.ndarray]) -> None:
    want = -(feeds["x"] * W)
    np.testing.assert_array_equal(session.run(feeds)["z"], want)
    np.testing.assert_array_equal(np.from_dlpack(session.run_dlpack(feeds)["z"]), want)


def test_a_shape_that_comes_again_gets_buffers_and_others_do_not() -> None:
    opening = Opening(affine())
    with GraphSession(opening) as session:
        for count in (1, 2, 3):
            np.testing.assert_array_equal(session.run(rows(count))["z"], -(rows(count)["x"] * W))
        assert not session._bound
        for step in range(5):
            same(session, rows(2, step))
        assert len(session._bound) == 1 and not session.refusal
        kept = session.run(rows(2))["z"]
        held = session.run_dlpack(rows(2))["z"]
        session.run(rows(2, 9))
        np.testing.assert_array_equal(kept, -(rows(2)["x"] * W))
        np.testing.assert_array_equal(np.from_dlpack(held), kept)
        assert list(session.run(rows(2), ["y"])) == ["y"]
        assert opening.opened == [(True, {})]
        with pytest.raises(DataError, match="dtype"):
            session.run({"x": rows(2)["x"].astype(np.float64), "w": W})
        same(session, rows(2))


def test_there_are_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_graphs, "MAX_SHAPES", 2)
    with GraphSession(Opening(affine())) as session:
        for count in (1, 2, 3, 4):
            for step in range(3):
                same(session, rows(count, step))
        assert len(session._bound) == 2


def test_inputs_without_elements_run_as_they_are() -> None:
    with GraphSession(Opening(affine())) as session:
        for _ in range(3):
            same(session, rows(0))
        assert not session._bound
        assert np.from_dlpack(session.bind(rows(0)).outputs["z"]).shape == (0, 3)


def test_where_dynamic_axes_are_refused_each_shape_has_its_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ort_graphs, "STREAK", 2)
    model = text("g (float[N, 3] x, float[3] w) => (float[N, 3] z) { p = Mul(x, w) z = Neg(p) }")
    opening = Opening(model, refuse="nodes on the CPU")
    with GraphSession(opening) as session:
        assert session.refusal == "nodes on the CPU"
        bound = session.bind(rows(2))
        bound.update(rows(2, 3))
        bound.run()
        np.testing.assert_array_equal(np.from_dlpack(bound.outputs["z"]), -(rows(2, 3)["x"] * W))
        for count in (3, 3, 3, 5):
            same(session, rows(count))
        assert opening.opened == [
            (False, {}),
            (True, {"N": 2}),
            (True, {"N": 3}),
            (True, {"N": 5}),
        ]
        for count in range(6, 6 + ort_graphs.MAX_SESSIONS):
            same(session, rows(count))
        assert len(opening.opened) == 1 + ort_graphs.MAX_SESSIONS
        with pytest.raises(EngineError, match="graphs for 4 shapes are captured already"):
            session.bind(rows(20))
    for each in opening.sessions:
        with pytest.raises(EngineError, match="closed"):
            each.run(rows(2))


def test_sessions_are_opened_only_for_shapes_that_stay() -> None:
    """A decoder's steps come again with every text, but never twice in a row."""
    opening = Opening(affine(), refuse="nodes on the CPU")
    with GraphSession(opening) as session:
        for _ in range(5):
            for count in range(1, 10):
                np.testing.assert_array_equal(
                    session.run(rows(count))["z"], -(rows(count)["x"] * W)
                )
        assert opening.opened == [(False, {})]
        for _ in range(ort_graphs.STREAK):
            session.run(rows(3))
        assert opening.opened == [(False, {}), (True, {"N": 3})]


def test_what_can_not_be_captured_runs_kernel_by_kernel() -> None:
    opening = Opening(affine(), refuse="control flow", ever=True)
    with GraphSession(opening) as session:
        for _ in range(3):
            same(session, rows(2))
        with pytest.raises(EngineError, match=r"control flow; open it with .*graph=false"):
            session.bind(rows(2))
        same(session, rows(2))


def test_fixed_shapes_are_refused_when_opened() -> None:
    model = text("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    with pytest.raises(EngineError, match="no CUDA graph can be captured: control flow"):
        GraphSession(Opening(model, refuse="control flow", ever=True))


def test_a_capture_that_fails_leaves_a_session_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    model = text("g (float[N] x) => (int64[1, M] y) { y = NonZero(x) }")
    opening = Opening(model)
    with GraphSession(opening) as session:
        one, two = (np.array(v, np.float32) for v in ([1, 0, 1], [1, 1, 1]))

        def broken(self: Any, native: Any, binding: Any, options: Any) -> None:
            raise EngineError("the stream is capturing")

        with monkeypatch.context() as patched:
            patched.setattr(OrtSession, "run_bound", broken)
            for x in (one, two, one):
                np.testing.assert_array_equal(session.run({"x": x})["y"][0], np.flatnonzero(x))
        assert [graph for graph, _ in opening.opened] == [True, False]
        with pytest.raises(EngineError, match="the stream is capturing"):
            session.bind({"x": one})


def test_a_failing_capture_waits_for_buffers_that_others_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with GraphSession(Opening(affine())) as session:
        bound, began = session.bind(rows(2)), threading.Event()

        def work() -> None:
            while True:
                bound.run()
                began.set()

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(work)
            assert began.wait(10)
            with monkeypatch.context() as patched:
                patched.setattr(ort_graphs, "OrtBound", _refusing)
                with pytest.raises(EngineError, match="captured: it broke off"):
                    session.bind(rows(3))
            with pytest.raises(EngineError, match="the session is closed"):
                running.result(10)
        same(session, rows(3))


def _refusing(*_: Any, **__: Any) -> None:
    raise EngineError("it broke off")


def test_threads_share_the_buffers_one_after_the_other() -> None:
    with GraphSession(Opening(affine())) as session:

        def work(seed: int) -> None:
            for step in range(40):
                same(session, rows(2 + seed % 2, seed * 100 + step))

        with ThreadPoolExecutor(4) as pool:
            for each in [pool.submit(work, seed) for seed in range(4)]:
                each.result(60)
        assert len(session._bound) == 2
        futures = [session.submit(rows(2, step)) for step in range(20)]
        for step, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(10)["z"], -(rows(2, step)["x"] * W))


def test_closed_and_profiled() -> None:
    session = GraphSession(Opening(affine()))
    bound = session.bind(rows(2))
    with pytest.raises(UsageError, match="keeps no profile"):
        session.executed()
    session.close()
    session.close()
    for call in (lambda: session.run(rows(2)), lambda: session.bind(rows(2)), bound.run):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_unknown_inputs_are_named() -> None:
    with GraphSession(Opening(affine())) as session:
        for call in (session.run, session.run_dlpack, session.bind):
            with pytest.raises(DataError, match="input 'w': missing"):
                call({"x": rows(1)["x"]})
