"""The contract of backends that build engines ahead of time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Built:
    """An engine that was built.

    Attributes:
        engine: Serialized engine.
        builder: Name and version of what built it.
        seconds: Time for parsing and building.
        layers: Number of layers of the network that was parsed.
    """

    engine: bytes
    builder: str
    seconds: float
    layers: int

    def __str__(self) -> str:
        """Return one line for people."""
        size = len(self.engine) / 1e6
        return f"{self.builder} built an engine of {size:.1f} MB in {self.seconds:.1f} s"


@runtime_checkable
class Builder(Protocol):
    """A backend that can build engines, even where it can't run them."""

    def cannot_build(self) -> str | None:
        """None when engines can be built here, else one line: the reason and what to do."""
        ...

    def build(self, model: Path, shapes: Mapping[str, Sequence[int]]) -> Built:
        """Build an engine; `shapes` has a shape for each input with dynamic axes.

        Raises:
            EngineError: The engine refuses the model; the nodes are named.
        """
        ...
