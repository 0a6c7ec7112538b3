"""What the sessions of all engines share: closing, requests in the background, warm-up, profile.

An engine's session subclasses `SessionBase` and brings `run`, `executed` and `_release`. What it can do
better than by way of numpy on the host (`run_dlpack`, `bind`), it overrides.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from qgraph.errors import EngineError, UsageError
from qgraph.runtime.backend import Bound, DLPack, ExecutedOp, TensorInfo
from qgraph.runtime.feeds import random_feeds
from qgraph.runtime.tensors import Array, check_bound, check_feeds, to_host

_Held = TypeVar("_Held")


class SessionBase:
    """Everything of `qgraph.runtime.backend.Session` that does not depend on the engine."""

    # Of requests from `submit`, one computes while another's arrays are copied.
    workers: ClassVar[int] = 2

    def __init__(
        self,
        engine: str,
        inputs: Sequence[TensorInfo],
        outputs: Sequence[TensorInfo],
        device: str = "cpu",
    ) -> None:
        """Describe the model; see `qgraph.runtime.backend.Session`."""
        self.engine, self.device = engine, device
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False
        self._pool: ThreadPoolExecutor | None = None

    # -- what an engine brings -------------------------------------------------------------------

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run once on arrays of the host; see `qgraph.runtime.backend.Session.run`."""
        raise NotImplementedError

    def executed(self) -> tuple[ExecutedOp, ...]:
        """What ran since opening; see `qgraph.runtime.backend.Session.executed`."""
        raise NotImplementedError

    def _release(self) -> None:
        """Let go of the engine; called once, with no run in flight."""
        raise NotImplementedError

    # -- arrays that stay where they are -----------------------------------------------------------

    def run_dlpack(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, DLPack]:
        """Run on arrays of the host, which are taken as they are and handed out as they are."""
        return dict(
            self.run({name: to_host(name, value) for name, value in feeds.items()}, outputs)
        )

    def bind(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> Bound:
        """Keep feeds to run on again and again."""
        return HostBound(self, feeds, outputs)

    # -- conveniences ------------------------------------------------------------------------------

    def submit(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> "Future[dict[str, Array]]":
        """Run in the background; the feeds must stay as they are until the result is there.

        Raises:
            EngineError: The session is closed.
        """
        with self._changed:
            self._check_open()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.workers, f"qgraph-{self.engine}")
            return self._pool.submit(self.run, feeds, outputs)

    def warmup(self, feeds: Mapping[str, Any] | None = None, runs: int = 3) -> None:
        """Run a few times, so that what engines put off until they are used is done.

        Args:
            feeds: Arrays of the shapes that will come; made up where None.
            runs: How often. Some engines record what they replay at the second run of a shape.
        """
        if runs < 1:
            raise UsageError(f"warmup of {runs} runs", fix="give at least 1")
        given = random_feeds(self.inputs, np.random.default_rng(0)) if feeds is None else feeds
        for _ in range(runs):
            self.run(given)

    def profile(self, feeds: Mapping[str, Any], runs: int = 3) -> tuple[ExecutedOp, ...]:
        """Run a few times and return what `executed` says, with each kernel's median time.

        Raises:
            UsageError: The session was opened without `profile=True`.
        """
        for _ in range(max(1, runs)):
            self.run(feeds)
        return self.executed()

    # -- closing -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Refuse further runs, wait for those in flight and release the engine.

        Requests from `submit` that have not begun fail with EngineError.
        """
        with self._changed:
            first, self._closed = not self._closed, True
            self._changed.wait_for(lambda: not self._inside)
            if not first:
                return
            if self._pool is not None:
                self._pool.shutdown(wait=False)
            self._release()

    def __enter__(self) -> Self:
        """Return the session."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the session."""
        self.close()

    def _running(self) -> "Running[None]":
        """Keep the session open while the block runs.

        Raises:
            EngineError: It is closed already, raised where the block begins.
        """
        return Running(self, None)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the session is closed", where=self.engine, fix="open it again")


class Running(Generic[_Held]):
    """A block in which a session stays open; entering it gives `held`.

    A class, since a generator would take twice as long, at every run.
    """

    __slots__ = ("_held", "_session")

    def __init__(self, session: SessionBase, held: _Held) -> None:
        """Prepare."""
        self._session, self._held = session, held

    def __enter__(self) -> _Held:
        """Count the block; refuse if the session is closed."""
        session = self._session
        with session._changed:
            session._check_open()
            session._inside += 1
        return self._held

    def __exit__(self, *_: object) -> None:
        """Let the session be closed."""
        session = self._session
        with session._changed:
            session._inside -= 1
            session._changed.notify_all()


class HostBound:
    """Feeds and results on the host, for engines without memory of their own."""

    def __init__(
        self, session: SessionBase, feeds: Mapping[str, Any], outputs: Sequence[str] | None
    ) -> None:
        """Copy the feeds and run once."""
        self._session, self._names = session, outputs
        self._inputs = {name: np.array(to_host(name, value)) for name, value in feeds.items()}
        self._infos = {info.name: info for info in session.inputs if info.name in feeds}
        self._outputs: dict[str, Array] = {}
        self.run()

    @property
    def inputs(self) -> Mapping[str, DLPack]:
        """The arrays that `run` reads; what is written into them counts."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, DLPack]:
        """Results of the last run."""
        return self._outputs

    def update(self, feeds: Mapping[str, Any]) -> None:
        """Copy feeds into the inputs; see `qgraph.runtime.backend.Bound.update`."""
        for name, array in check_feeds((), feeds, tuple(self._infos.values())).items():
            check_bound(name, self._inputs[name].shape, array.shape)
            self._inputs[name][...] = array

    def run(self) -> None:
        """Run on what the inputs hold now."""
        self._outputs = self._session.run(self._inputs, self._names)
