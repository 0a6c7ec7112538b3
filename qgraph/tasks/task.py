"""A task, and who runs tasks: the interface, and its plainest form."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

# How often a task is given to another worker after one died over it.
RETRIES = 2
# Tasks given out ahead for each worker: results wait for those before them.
AHEAD = 4

Progress = Callable[[int, int | None], None]


def silent(done: int, total: int | None) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Task:
    """A call that can be made in another process.

    Attributes:
        key: Names it in messages.
        function: `module:function`, imported where it runs.
        arguments: By name; they are pickled.
    """

    key: str
    function: str
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, key: str, function: Callable[..., Any], /, **arguments: Any) -> "Task":
        """Make a task of a function at the top of a module.

        Raises:
            ValueError: Another process could not import the function.
        """
        module, name = function.__module__, function.__qualname__
        if module == "__main__" or not name.isidentifier():
            raise ValueError(f"{module}.{name} can't be imported by another process")
        return cls(key, f"{module}:{name}", arguments)

    def call(self) -> Any:
        """Make the call."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(module), name)(**self.arguments)


class SharedFolder(Protocol):
    """A folder of files that tasks read; goes into their arguments."""

    def opened(self) -> AbstractContextManager[Path]:
        """Give the folder on the machine where the task runs."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder that every worker can read where it lies."""

    path: Path

    def opened(self) -> AbstractContextManager[Path]:
        """Give the folder itself."""
        return nullcontext(self.path)


class Executor(ABC):
    """Runs tasks. A context manager; workers start when they are first needed.

    Attributes:
        workers: How many tasks run at a time.
        beside: How many of them share one machine's memory, as far as that is known.
        processors: Kinds of processors that tasks ran on, as far as that is known: another kind may
            compute other last bits.
    """

    workers: int = 1
    beside: int = 1
    processors: Collection[str] = ()

    @abstractmethod
    def stream(self, tasks: Iterable[Task], progress: Progress = silent) -> Iterator[Any]:
        """Give the tasks' results in the order of the tasks.

        Tasks are taken from the iterable as workers become free, so that their arguments need not
        all be in memory at once. A task whose worker dies is given to another one, `RETRIES` times;
        its result takes its one place, so nothing counts twice. What a task raises is raised here,
        and the tasks that run are stopped.

        Args:
            tasks: The tasks; each must give the same result wherever and however often it runs.
            progress: Called with the number of results given, and of all tasks where it is known.

        Raises:
            EngineError: Workers keep dying over a task, or can't be started.
        """

    def run(self, tasks: Iterable[Task], progress: Progress = silent) -> list[Any]:
        """Return the results of `stream` as a list."""
        return list(self.stream(tasks, progress))

    def share(self, folder: Path) -> SharedFolder:
        """Make a folder's files readable by tasks; it must stay as it is until they are done."""
        return LocalFolder(folder)

    @abstractmethod
    def close(self) -> None:
        """Stop the workers. A later `stream` starts them again."""

    def __enter__(self) -> Self:
        """Return the executor."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the workers."""
        self.close()


def in_order(
    tasks: Iterable[Task], submit: Callable[[Task], Future[Any]], ahead: int, progress: Progress
) -> Iterator[Any]:
    """Submit tasks and give their results in the order of the tasks.

    The first error of any of them is raised at once, not when its turn comes.

    Args:
        tasks: The tasks.
        submit: Starts one.
        ahead: How many may be started and not yet given.
        progress: Called as `Executor.stream` says.
    """
    total = len(tasks) if isinstance(tasks, Sized) else None
    waiting: deque[Future[Any]] = deque()
    given = 0
    for task in tasks:
        waiting.append(submit(task))
        if len(waiting) == ahead:
            yield _first(waiting)
            given += 1
            progress(given, total)
    while waiting:
        yield _first(waiting)
        given += 1
        progress(given, total)


def _first(waiting: deque[Future[Any]]) -> Any:
    """Return the first result and take it out, or raise what any of them raised."""
    while not waiting[0].done():
        wait([each for each in waiting if not each.done()], return_when=FIRST_COMPLETED)
        for each in waiting:
            if each.done():
                each.result()
    return waiting.popleft().result()


class InProcess(Executor):
    """Runs one task after the other in this process."""

    def stream(self, tasks: Iterable[Task], progress: Progress = silent) -> Iterator[Any]:
        """Give the tasks' results in the order of the tasks."""
        total = len(tasks) if isinstance(tasks, Sized) else None
        for number, task in enumerate(tasks):
            yield task.call()
            progress(number + 1, total)

    def close(self) -> None:
        """Do nothing: there are no workers."""
