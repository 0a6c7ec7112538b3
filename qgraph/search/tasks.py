"""Runs independent tasks: here in threads of this process, one a core.

A task is data, and its function is importable, so that another executor can take them elsewhere;
results come back in the order of the tasks, whoever finishes first.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from qgraph.runtime.backend import available_cores

Given = TypeVar("Given")
Result = TypeVar("Result")


class Executor(Protocol):
    """Runs a function on tasks and yields their results in order."""

    def __call__(
        self, function: Callable[[Given], Result], tasks: Sequence[Given]
    ) -> Iterator[Result]:
        """Run `function` on each task."""


def run_tasks(function: Callable[[Given], Result], tasks: Sequence[Given]) -> Iterator[Result]:
    """Yield the result of each task in order; engines compute outside of Python's lock."""
    with ThreadPoolExecutor(max(1, min(available_cores(), len(tasks)))) as pool:
        yield from pool.map(function, tasks)
