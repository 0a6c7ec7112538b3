"""The contract of backends that build engines ahead of time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from qgraph.errors import EngineError

Progress = Callable[[str, int, int | None], None]


def silent(what: str, done: int, total: int | None) -> None:
    """Hear nothing of a build's progress."""


@dataclass(frozen=True)
class BuildRequest:
    """What an engine is built for.

    Attributes:
        shapes: By input name, the shape to build for where the options name none.
        options: The engine's own options; None for its defaults.
        capability: Compute capability to build for where the options name none and the engine has
            it; empty for the engine's default.
        progress: Told how far the build is.
    """

    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    options: Any = None
    capability: str = ""
    progress: Progress = silent


@dataclass(frozen=True)
class Built:
    """An engine that was built.

    Attributes:
        engine: Serialized engine.
        builder: Name and version of what built it.
        seconds: Time for parsing and building.
        layers: Number of layers of the network that was parsed.
        record: What whoever opens it must know, JSON-able.
    """

    engine: bytes
    builder: str
    seconds: float
    layers: int
    record: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return one line for people."""
        size = len(self.engine) / 1e6
        return f"{self.builder} built an engine of {size:.1f} MB in {self.seconds:.1f} s"


class NotBuiltError(EngineError):
    """The builder refuses a model that its parser takes; `reasons` are its own words."""

    reasons: tuple[str, ...] = ()


@runtime_checkable
class Builder(Protocol):
    """A backend that can build engines, even where it can't run them."""

    def cannot_build(self) -> str | None:
        """None when engines can be built here, else one line: the reason and what to do."""
        ...

    def build(self, model: Path, request: BuildRequest = ...) -> Built:
        """Build an engine.

        Raises:
            EngineError: The engine refuses the model; the nodes are named.
            NotBuiltError: Its parser takes the model, its builder does not.
        """
        ...

    def write(self, built: Built, model: Path) -> list[Path]:
        """Write the engine and its record beside the model, so that `open` finds them.

        Returns:
            The files.
        """
        ...
