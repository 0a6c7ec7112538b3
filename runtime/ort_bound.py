"""A model of ONNX Runtime on buffers that stay where they are."""

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from qgraph.runtime.backend import DLPack
from qgraph.runtime.ort_values import copied, fill, placed, take, to_numpy
from qgraph.runtime.tensors import Array, check_bound, check_names

if TYPE_CHECKING:
    from qgraph.runtime.ort_session import OrtSession

# The run option that numbers captured graphs; this value leaves a run out of capturing.
GRAPH_ID = "gpu_graph_id"
NO_GRAPH = "-1"


class OrtBound:
    """Inputs and outputs of one session, bound once; see `qgraph.runtime.backend.Bound`."""

    def __init__(
        self,
        session: "OrtSession",
        feeds: Mapping[str, Any],
        names: Mapping[str, str],
        *,
        graph: int | None = None,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Copy the feeds to where the session reads them, and run once.

        Args:
            session: An open session.
            feeds: Arrays by input name.
            names: The types of the outputs wanted, by name.
            graph: Number of the CUDA graph to capture and replay, in a session that captures.
            lock: Held while the buffers are used; default: one of its own.

        Raises:
            DataError: As `OrtSession.run_dlpack`.
            EngineError: A run fails, or no graph can be captured.
        """
        self._session, self._types = session, dict(names)
        self._lock = threading.RLock() if lock is None else lock
        known = check_names(session.inputs, feeds, session.optional)
        self._infos = {name: known[name] for name in feeds}
        given = {name: take(info, feeds[name]) for name, info in self._infos.items()}
        with self._lock, session.native() as native:
            self._binding = native.io_binding()
            self._inputs = {
                name: placed(self._infos[name].dtype, taken, session.memory[name])
                for name, taken in given.items()
            }
            for name, value in self._inputs.items():
                self._binding.bind_ortvalue_input(name, value)
            for name in self._types:
                self._binding.bind_output(name, session.memory[name])
            # The first run finds the outputs' shapes; from then on they have fixed places.
            session.run_bound(native, self._binding, session.run_options)
            self._outputs = dict(zip(self._types, self._binding.get_outputs(), strict=True))
            for name, value in self._outputs.items():
                self._binding.bind_ortvalue_output(name, value)
        self._options = session.run_options
        if graph is not None:
            self._options = session.graph_options(graph)
            self.run()

    @property
    def inputs(self) -> Mapping[str, DLPack]:
        """Buffers that `run` reads."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, DLPack]:
        """What the last run left; the next one overwrites it."""
        return self._outputs

    def run(self) -> None:
        """Run on what the inputs hold now, and wait for the result."""
        # In this order: who holds the lock may close the session, which waits for runs.
        with self._lock, self._session.native() as native:
            self._session.run_bound(native, self._binding, self._options)

    def update(self, feeds: Mapping[str, Any]) -> None:
        """Copy feeds into the inputs that they name; see `qgraph.runtime.backend.Bound.update`."""
        known = check_names((), feeds, tuple(self._infos.values()))
        for name, feed in feeds.items():
            taken, held = take(known[name], feed), self._inputs[name]
            shape = taken.shape if isinstance(taken, np.ndarray) else taken.shape()
            check_bound(name, held.shape(), shape)
            fill(known[name].dtype, held, taken)

    def numpy(self, name: str) -> Array:
        """One output in memory of the host."""
        return to_numpy(self._types[name], self._outputs[name])

    def copy(self, name: str) -> DLPack:
        """One output in memory of its own, where it lies."""
        value = self._outputs[name]
        made: DLPack = copied(self._types[name], value, value.device_name())
        return made
