"""Observers: what turns the values of a tensor into the range that is quantized.

An observer sees one sample's values at a time, so its answer does not depend on batch size, and
merges with another that saw other samples, so it does not depend on order or sharding.
"""

from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from qgraph.registry import by_name, pick

# One line an observer.
OBSERVERS = [
    "qgraph.passes.observers.minmax:MinMax",
    "qgraph.passes.observers.mean_minmax:MeanMinMax",
]


class Observer(Protocol):
    """Collects statistics of one tensor in bounded memory.

    Attributes:
        name: Name for `--set calibrate.observer=NAME`.
        extremes_only: True if `observe` needs no more of a sample than its least and greatest
            value; calibration then reduces inside the engine, which is several times faster.
    """

    name: ClassVar[str]
    extremes_only: ClassVar[bool]

    def observe(self, x: NDArray[np.floating]) -> None:
        """Take in one sample's values, any shape (or just its two extremes)."""

    def merge(self, other: Self) -> None:
        """Take in everything that `other` has seen."""

    def range(self) -> tuple[float, float]:
        """Return (low, high) to quantize.

        Raises:
            ValueError: Nothing was observed.
        """


def observers() -> dict[str, type[Observer]]:
    """Return every registered observer by name."""
    return by_name(OBSERVERS)


def observer(name: str) -> type[Observer]:
    """Return an observer by name.

    Raises:
        UsageError: There is none; the nearest name is suggested.
    """
    return pick("observer", name, observers())
