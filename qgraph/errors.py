"""Errors that users see: one line that says what is wrong, where, and how to fix it."""

import difflib
from collections.abc import Iterable
from functools import partial
from typing import Any


class QGraphError(Exception):
    """Base of every error that qgraph raises on purpose.

    Args:
        what: What is wrong, without a final full stop.
        where: File, node, tensor or option it is about; empty where there is none.
        fix: What the user can do, an imperative clause without a final full stop.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        """Keep the three parts, so that tests and `--json` can tell them apart."""
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the parts by name, as for errors that come from another process."""
        return partial(type(self), where=self.where, fix=self.fix), (self.what,), self.__dict__

    def __str__(self) -> str:
        """Return the whole message on one line."""
        line = f"{self.where}: {self.what}" if self.where else self.what
        line = f"{line}; {self.fix}" if self.fix else line
        return " ".join(line.split())


class UsageError(QGraphError):
    """The request itself is wrong: an unknown option, name or combination."""

    exit_code = 2


class ModelError(QGraphError):
    """The model can't be read, is invalid, or can't be compiled."""


class DataError(QGraphError):
    """The data can't be read or does not fit the model's inputs."""


class EngineError(QGraphError):
    """An engine is not installed, refuses the model, or fails while running it."""


class ArtifactError(QGraphError):
    """An artifact can't be written or opened."""


class AccuracyError(QGraphError):
    """The artifact was built, but it differs from the original by more than the recipe allows."""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UsageError:
    """Build the error for a name that is not among `choices`, with the nearest one suggested."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(known)}"
    return UsageError(f"unknown {kind} {name!r}", fix=fix)
