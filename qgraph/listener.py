"""Who hears how a compile goes: the command line draws bars, the Python API is silent."""

from typing import Protocol


class Listener(Protocol):
    """What `compile` tells while it works."""

    def stage(self, name: str) -> None:
        """A step of the compile begins."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """A long loop inside a step has come this far."""

    def warn(self, line: str) -> None:
        """Something the user should know."""

    def info(self, line: str) -> None:
        """Something worth a line with -v."""


class Silent:
    """Hears nothing; warnings stand in the manifest anyway."""

    def stage(self, name: str) -> None:
        """Ignore it."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Ignore it."""

    def warn(self, line: str) -> None:
        """Ignore it."""

    def info(self, line: str) -> None:
        """Ignore it."""
