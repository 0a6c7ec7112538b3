"""CUDA graphs: a session that records what the GPU does for a shape, and replays it in one launch.

A graph needs buffers that stay where they are, and every kernel on the GPU. `bind` gives the buffers to the
caller; `run` and `run_dlpack` copy into and out of buffers that the session keeps for shapes that
came before, up to `MAX_SHAPES` of them. All else runs kernel by kernel: the first run of a shape, a
decoder's ever longer cache, inputs without elements.

Where computing shapes keeps nodes on the CPU, ONNX Runtime captures nothing as long as axes are dynamic. A
session of its own is then opened for a shape that is bound, or comes `STREAK` times in a row, with the
axes fixed, so that shapes are constants. It holds the weights once more, so there are few of them.

Graphs belong to the thread that captured them: another thread that comes with the same shape captures again.
Runs follow one another, since they share buffers and ONNX Runtime's memory.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from qgraph.errors import EngineError
from qgraph.runtime.backend import DLPack, ExecutedOp, TensorInfo
from qgraph.runtime.ort_bound import OrtBound
from qgraph.runtime.ort_session import OrtSession
from qgraph.runtime.session import SessionBase
from qgraph.runtime.tensors import EXTENSION_DTYPES, Array, check_names, is_foreign

# Each keeps buffers for its inputs and outputs, and what ONNX Runtime allocated meanwhile.
MAX_SHAPES = 16
# Each of these holds the weights too, and takes as long to open as the model does: only for a shape
# that comes so many times in a row.
MAX_SESSIONS = 4
STREAK = 8
_REMEMBERED = 256

Key = tuple[tuple[str, tuple[int, ...]], ...]


class Opening(Protocol):
    """Opens the model in ONNX Runtime."""

    def __call__(self, *, graph: bool, sizes: Mapping[str, int] | None = ...) -> OrtSession:
        """Open it so that it can capture graphs, or not; with dynamic axes fixed by name."""
        ...


class GraphSession(SessionBase):
    """A model whose runs are replayed as CUDA graphs; see this module's docstring.

    Attributes:
        refusal: Why no graph can be captured while axes are dynamic; empty where one can.
    """

    # Graphs belong to a thread.
    workers: ClassVar[int] = 1

    def __init__(self, opening: Opening) -> None:
        """Open the model.

        Raises:
            EngineError: No graph can be captured of it, whatever the shapes.
            ModelError: The file does not exist.
        """
        self._opening = opening
        self.refusal = ""
        try:
            self._main = opening(graph=True)
            self.refusal = _on_host(self._main)
        except EngineError as error:
            self._main = opening(graph=False)
            self.refusal = error.what
        main = self._main
        super().__init__(main.engine, main.inputs, main.outputs, main.device)
        self._lock = threading.RLock()
        self._fixed: dict[Key, OrtSession] = {}
        self._bound: dict[Key, OrtBound] = {}
        self._seen: OrderedDict[Key, None] = OrderedDict()
        self._last: Key | None = None
        self._streak = 0
        self._graphs = 0
        self._given_up = ""
        if self.refusal and not any(isinstance(d, str) for i in main.inputs for d in i.shape):
            main.close()
            self._given_up = self.refusal
            raise self._impossible()

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run once; see `qgraph.runtime.backend.Session.run`."""
        with self._running(), self._lock:
            bound = self._again(feeds)
            if bound is None:
                return self._main.run(feeds, outputs)
            names = self._main.output_types(outputs)
            bound.update(feeds)
            bound.run()
            return {name: bound.numpy(name) for name in names}

    def run_dlpack(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, DLPack]:
        """Run once on arrays on the GPU; a replayed graph copies them into and out of its buffers."""
        with self._running(), self._lock:
            bound = self._again(feeds)
            if bound is None:
                return self._main.run_dlpack(feeds, outputs)
            names = self._main.tensor_types(outputs)
            bound.update(feeds)
            bound.run()
            return {name: bound.copy(name) for name in names}

    def bind(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> OrtBound:
        """Capture a graph on buffers that stay; `run` of what is returned replays it.

        Raises:
            DataError, UsageError: As `qgraph.runtime.backend.Session.bind`.
            EngineError: No graph can be captured for these shapes.
        """
        with self._running(), self._lock:
            key = _key(self._main, feeds)
            types = self._main.tensor_types(outputs)
            if not all(all(shape) for _, shape in key):
                return OrtBound(self._main, feeds, types, lock=self._lock)
            return self._capture(key, feeds, types)

    def executed(self) -> tuple[ExecutedOp, ...]:
        """Refuse: sessions that are profiled capture no graphs.

        Raises:
            UsageError: Always.
        """
        return self._main.executed()

    def _again(self, feeds: Mapping[str, Any]) -> OrtBound | None:
        """Buffers and graph for feeds whose shapes came before; None to run kernel by kernel."""
        key = _key(self._main, feeds)
        self._streak = self._streak + 1 if key == self._last else 1
        self._last = key
        if key in self._bound:
            return self._bound[key]
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            return None
        if self.refusal and self._streak < STREAK:
            return None
        if self._given_up or self._full() or not all(all(shape) for _, shape in key):
            return None
        if not _bindable((*self._main.inputs, *self._main.outputs)):
            return None
        try:
            self._bound[key] = self._capture(key, feeds, self._main.output_types(None))
        except EngineError:
            return None
        return self._bound[key]

    def _capture(self, key: Key, feeds: Mapping[str, Any], types: Mapping[str, str]) -> OrtBound:
        """Capture a graph.

        Raises:
            EngineError: It can't be done; kernels run one by one from then on.
        """
        if self._given_up:
            raise self._impossible()
        if self.refusal and self._full() and key not in self._fixed:
            raise EngineError(
                f"graphs for {MAX_SESSIONS} shapes are captured already, each with the weights",
                where=self.engine,
                fix="use fewer shapes, or a model that computes no shapes",
            )
        self._graphs += 1
        try:
            session = self._session_for(key)
            return OrtBound(session, feeds, types, graph=self._graphs, lock=self._lock)
        except EngineError as error:
            self._given_up = error.what
            if not self.refusal:
                # A capture that breaks off leaves the provider's stream unusable.
                self._drop()
                self._main = self._opening(graph=False)
            raise self._impossible() from error

    def _impossible(self) -> EngineError:
        what = f"no CUDA graph can be captured: {self._given_up}"
        return EngineError(what, where=self.engine, fix=_FIX)

    def _full(self) -> bool:
        """Whether there is no room for another shape."""
        if self.refusal:
            return len(self._fixed) >= MAX_SESSIONS
        return len(self._bound) >= MAX_SHAPES

    def _session_for(self, key: Key) -> OrtSession:
        """The session that captures for these shapes."""
        if not self.refusal:
            return self._main
        if key not in self._fixed:
            session = self._opening(graph=True, sizes=_sizes(self._main.inputs, dict(key)))
            if reason := _on_host(session):
                session.close()
                raise EngineError(reason)
            self._fixed[key] = session
        return self._fixed[key]

    def _drop(self) -> None:
        self._bound.clear()
        for session in (*self._fixed.values(), self._main):
            session.close()
        self._fixed.clear()

    def _release(self) -> None:
        self._drop()


_FIX = "open it with the option graph=false"


def _key(session: OrtSession, feeds: Mapping[str, Any]) -> Key:
    """The feeds' shapes by name.

    Raises:
        DataError: An input is missing or unknown.
    """
    check_names(session.inputs, feeds, session.optional)
    return tuple((name, _shape(feeds[name])) for name in sorted(feeds))


def _shape(value: Any) -> tuple[int, ...]:
    if is_foreign(value):
        from onnxruntime import OrtValue

        return tuple(OrtValue.from_dlpack(value).shape())
    return np.shape(value)


def _sizes(inputs: Sequence[TensorInfo], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Lengths of dynamic axes by symbol."""
    return {
        dim: shapes[info.name][axis]
        for info in inputs
        for axis, dim in enumerate(info.shape)
        if isinstance(dim, str) and info.name in shapes
    }


def _on_host(session: OrtSession) -> str:
    """What the CPU reads or makes of a model's inputs and outputs: a replay would not see it."""
    for kind, infos in (("input", session.inputs), ("output", session.outputs)):
        for info in infos:
            if session.memory[info.name] != session.device:
                return f"{kind} {info.name!r} lies in the CPU's memory"
    return ""


def _bindable(infos: Sequence[TensorInfo]) -> bool:
    return not any(
        info.dtype == "string" or "(" in info.dtype or info.dtype in EXTENSION_DTYPES
        for info in infos
    )
