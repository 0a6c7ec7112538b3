"""What people read: tables made from plain data; the same data is what `--json` prints.

No function here reads a model or an artifact. Cells are text, never markup, and control characters
in them are escaped, since names come from models that nobody vouches for.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qgraph.text import one_line, printable

# Where a program reads, lines are neither wrapped nor cut.
_UNLIMITED = 100_000


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would exit with 1, which means here that a model can't be compiled.
        raise BrokenPipeError


def make_console(stream: TextIO) -> Console:
    """Return a console that reads no markup in what it prints."""
    width = None if stream.isatty() else _UNLIMITED
    return _Console(file=stream, markup=False, highlight=False, emoji=False, width=width)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "", right: str = ""
) -> Table:
    """Return a table.

    Args:
        columns: Headings.
        rows: Cells, any values; a list has a line for each item, None is an empty cell.
        title: A line above the table.
        right: Headings of the columns that are aligned to the right, separated by spaces.
    """
    made = Table(
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )
    to_the_right = right.split()
    for column in columns:
        made.add_column(
            column, justify="right" if column in to_the_right else "left", overflow="fold"
        )
    for row in rows:
        made.add_row(*map(_cell, row))
    return made


def _cell(value: Any) -> str:
    lines = value if isinstance(value, list) else [] if value is None else [value]
    return "\n".join(printable(str(line)) for line in lines)


def facts(pairs: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Table:
    """Return names and values, one pair a line, without headings."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in pairs.items() if isinstance(pairs, Mapping) else pairs:
        made.add_row(name, one_line(str(value)))
    return made


def heading(text: str) -> Text:
    """Return a heading with an empty line above."""
    return Text(f"\n{printable(text)}", style="bold")


def warning(text: str) -> Text:
    """Return a warning line."""
    return Text(f"warning: {one_line(text)}", style="yellow")


def number(value: Any, digits: int = 4) -> str:
    """Return a number in `digits` significant digits; infinities as words, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}g}"


def milliseconds(value: float | None) -> str:
    """Return a latency in ms with three significant digits at least."""
    if value is None:
        return ""
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def reasons(refused: Mapping[str, int], limit: int = 0) -> list[str]:
    """Return 'N x reason' lines, most frequent first; the rest beyond `limit` counted."""
    ordered = sorted(refused.items(), key=lambda item: (-item[1], item[0]))
    shown = ordered[:limit] if limit else ordered
    lines = [f"{count} x {reason}" for reason, count in shown]
    if len(shown) < len(ordered):
        rest = sum(count for _, count in ordered[len(shown) :])
        lines.append(f"{rest} x {len(ordered) - len(shown)} other reasons")
    return lines
