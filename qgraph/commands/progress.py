"""Progress of a compile on stderr: bars with time left on a terminal, nothing elsewhere."""

from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from qgraph.commands.output import Output
from qgraph.text import one_line


class ConsoleListener:
    """Shows what `qgraph.compile` reports; satisfies `qgraph.listener.Listener`.

    Attributes:
        warnings: Warnings so far, in order, each once.
        live: Whether warnings are printed on stderr as they come, because someone watches it.
    """

    def __init__(self, output: Output) -> None:
        """Prepare; nothing is shown before the listener is entered."""
        self.output = output
        self.warnings: list[str] = []
        self._untold: list[str] = []
        self.live = output.stderr.is_terminal
        self._tasks: dict[str, TaskID] = {}
        self._stage: TaskID | None = None
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=output.stderr,
            transient=True,
            disable=output.shared.quiet or not output.stderr.is_terminal,
        )

    def __enter__(self) -> Self:
        """Start to show bars."""
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the bars."""
        self._bars.stop()

    def stage(self, name: str) -> None:
        """A new part of the work begins."""
        for task in [*self._tasks.values(), *([] if self._stage is None else [self._stage])]:
            self._bars.remove_task(task)
        self._tasks.clear()
        self._stage = self._bars.add_task(one_line(name), total=None)
        if self.output.verbose > 1 and not self.live:
            self.output.note(name)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """A part of the stage got further: `done` of `total`, or of an unknown number."""
        task = self._tasks.get(what)
        if task is None:
            task = self._tasks[what] = self._bars.add_task(f"  {one_line(what)}", total=total)
        self._bars.update(task, completed=done, total=total)

    def warn(self, line: str) -> None:
        """Take a warning; it is shown at once on a terminal, else with the summary."""
        if line in self.warnings:
            return
        self.warnings.append(line)
        if self.live:
            self.output.warn(line)
        else:
            self._untold.append(line)

    def untold(self) -> list[str]:
        """Return the warnings that were not shown yet, and take them as shown."""
        lines, self._untold = self._untold, []
        return lines

    def info(self, line: str) -> None:
        """Show a note with `-v`."""
        if self.output.verbose:
            self.output.note(line)
