"""Observers: what turns the values of a tensor into the range that is quantized.

An observer sees one sample's values at a time, so its answer does not depend on batch size, and
merges with another that saw other samples, so it does not depend on order or sharding
(`moving-average` alone does depend on order, and says so by `ordered`).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from qgraph.registry import by_name, pick

# One line an observer.
OBSERVERS = [
    "qgraph.passes.observers.minmax:MinMax",
    "qgraph.passes.observers.mean_minmax:MeanMinMax",
    "qgraph.passes.observers.moving_average:MovingAverage",
    "qgraph.passes.observers.percentile:Percentile",
    "qgraph.passes.observers.entropy:Entropy",
    "qgraph.passes.observers.mse:MeanSquaredError",
]


class Observer(Protocol):
    """Collects statistics of one tensor in bounded memory.

    Attributes:
        name: Name for `--set calibrate.observer=NAME`.
        extremes_only: True if `observe` needs no more of a sample than its least and greatest
            value; calibration then reduces inside the engine, which is several times faster.
        ordered: True if the result depends on the order of the samples, so that `merge` refuses.
        options: Names of the constructor's arguments that `build` passes on.
    """

    name: ClassVar[str]
    extremes_only: ClassVar[bool]
    ordered: ClassVar[bool]
    options: ClassVar[tuple[str, ...]]

    def observe(self, x: NDArray[np.floating]) -> None:
        """Take in one sample's values, any shape (or just its two extremes).

        Raises:
            ValueError: A value is NaN or infinite, where the observer needs whole arrays.
        """

    def merge(self, other: Self) -> None:
        """Take in everything that `other` has seen.

        Raises:
            ValueError: The two can't be merged.
        """

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


def build(kind: type[Observer], options: Mapping[str, Any]) -> Observer:
    """Make an observer from those of `options` that it takes.

    Raises:
        ValueError: A value is out of range.
    """
    return kind(**{name: options[name] for name in kind.options if name in options})
