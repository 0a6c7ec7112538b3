"""Where commands write: results to stdout, everything else to stderr."""

import json
import math
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from qgraph.commands.options import Shared
from qgraph.text import one_line, printable

if TYPE_CHECKING:
    from rich.console import RenderableType


class Output:
    """One command's output, as the shared options want it.

    Attributes:
        shared: The options.
    """

    def __init__(self, shared: Shared) -> None:
        """Open the consoles; a character that the terminal can't show never ends the program."""
        from qgraph.report import make_console

        self.shared = shared
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        self.stdout = make_console(sys.stdout)
        self.stderr = make_console(sys.stderr)

    @classmethod
    def begin(
        cls, ctx: typer.Context, verbose: int, quiet: bool, as_json: bool = False
    ) -> "Output":
        """Start a command: join its options with those given before its name."""
        shared = ctx.ensure_object(Shared)
        shared.add(verbose, quiet, as_json)
        return cls(shared)

    @property
    def verbose(self) -> int:
        """How often `-v` was given."""
        return self.shared.verbose

    def emit(self, document: Any, *renderables: "RenderableType") -> None:
        """Print the result: the document with `--json`, else what people read."""
        if self.shared.json:
            self.document(document)
            return
        self.show(*renderables)

    def document(self, document: Any) -> None:
        """Print one JSON document on stdout."""
        text = json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False)
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def show(self, *renderables: "RenderableType") -> None:
        """Print on stdout; strings are printed as they are, never read as markup."""
        for each in renderables:
            if isinstance(each, str):
                self.stdout.print(printable(each, keep="\n\t"), soft_wrap=True)
            else:
                self.stdout.print(each)
        self.stdout.file.flush()

    def stream(self, piece: str) -> None:
        """Print a piece of text on stdout as it comes, without a line break behind it."""
        self.stdout.file.write(printable(piece, keep="\n\t"))
        self.stdout.file.flush()

    def note(self, line: str) -> None:
        """Print a line on stderr, unless quiet."""
        if not self.shared.quiet:
            self.stderr.print(printable(line), soft_wrap=True)

    def warn(self, line: str) -> None:
        """Print a warning on stderr, quiet or not."""
        text = f"qgraph: warning: {one_line(line)}"
        self.stderr.print(text, style="yellow", soft_wrap=True)


def plain(value: Any) -> Any:
    """Turn a value into what JSON has: no infinities, paths, sets or numpy numbers."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Iterable):
        return [plain(each) for each in value]
    if hasattr(value, "item"):
        return plain(value.item())
    return str(value)
