"""Runs independent tasks: here in threads of this process, one a core, or in another executor's workers.

A task is data, and its function is importable, so that an executor of `qgraph.tasks` can take it elsewhere;
results come back in the order of the tasks, whoever finishes first.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from qgraph import tasks as workers
from qgraph.runtime.backend import available_cores
from qgraph.search.sweep import Found, Task, sweep
from qgraph.tasks import SharedFolder

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


def sweeping(executor: workers.Executor, folder: Path) -> Executor:
    """Return what runs the sweep's tasks in an executor's workers.

    Args:
        executor: The executor.
        folder: Segments; workers get to see them.
    """
    shared: list[SharedFolder] = []

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        if function is not sweep:
            raise ValueError(f"{function} is not the sweep")
        if tasks and not shared:
            shared.append(executor.share(folder))
        return executor.stream(
            [
                workers.Task.of(
                    f"sensitivity, share {number + 1} of {len(tasks)}",
                    sweep_shared,
                    folder=shared[0],
                    task=task,
                )
                for number, task in enumerate(tasks)
            ]
        )

    return run


def sweep_shared(folder: SharedFolder, task: Task) -> Found:
    """Run the sweep of a task on a folder that was shared."""
    with folder.opened() as path:
        return sweep(replace(task, folder=str(path)))
