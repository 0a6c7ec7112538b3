"""How far a build is, and how it is stopped."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from qgraph.runtime.builder import Progress
from qgraph.runtime.tensorrt.library import Library

_Result = TypeVar("_Result")
_WHAT = "building the engine"


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The builder's nested phases as one number. The builder's threads may call it at once."""

    def __init__(self, progress: Progress) -> None:
        """Report to `progress` in percent; it never goes back."""
        self._progress = progress
        self._phases: dict[str, _Phase] = {}
        self._told = -1
        self._lock = threading.Lock()
        self._cancelled = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, index: int) -> bool:
        """One step of a phase is done. Returns whether to go on."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = index + 1
            self._tell()
            return not self._cancelled

    def finish(self, name: str) -> None:
        """A phase ends."""
        with self._lock:
            self._phases.pop(name, None)

    def cancel(self) -> None:
        """Make the builder stop after the step that it is at."""
        self._cancelled = True

    def _tell(self) -> None:
        outer = (name for name, each in self._phases.items() if each.parent not in self._phases)
        percent = int(100 * max(map(self._share, outer), default=0.0))
        if percent > self._told:
            self._told = percent
            self._progress(_WHAT, percent, 100)

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inner = [key for key, each in self._phases.items() if each.parent == name]
        done = phase.done + max(map(self._share, inner), default=0.0)
        return min(done / phase.steps, 1.0)


def monitor(library: Library, phases: Phases) -> Any:
    """Return the library's own kind of monitor, which tells `phases`."""
    base = library.module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            phases.start(name, parent, steps)

        def step_complete(self, name: str, index: int) -> bool:
            return phases.step(name, index)

        def phase_finish(self, name: str) -> None:
            phases.finish(name)

    return Monitor()


def interruptible(build: Callable[[], _Result], phases: Phases) -> _Result:
    """Build in a thread of its own, so that Ctrl-C reaches this one and stops the builder.

    Raises:
        KeyboardInterrupt: After the builder has stopped.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="tensorrt-build") as pool:
        future = pool.submit(build)
        try:
            return future.result()
        except KeyboardInterrupt:
            phases.cancel()
            raise
