"""Exponential moving average of each sample's least and greatest value."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray


@dataclass
class MovingAverage:
    """Range that follows the samples' extremes: r <- (1 - rate) r + rate x, from the first one.

    The only observer that depends on the samples' order, by definition: late samples weigh
    more. It is here to reproduce ranges that were made that way; the average of its results over
    all orders is exactly `mean-minmax`, which is the choice for everything else. Two histories
    have no common order, so `merge` refuses.

    Attributes:
        rate: Weight of a new sample, 0 to 1.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", section 3.1; the rate of 0.01 is PyTorch's
        `MovingAverageMinMaxObserver`.
    """

    name: ClassVar[str] = "moving-average"
    extremes_only: ClassVar[bool] = True
    ordered: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("rate",)

    rate: float = 0.01
    low: float = float("inf")
    high: float = float("-inf")

    def __post_init__(self) -> None:
        """Check the rate."""
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate is {self.rate}; give more than 0 and at most 1, such as 0.01")

    def observe(self, x: NDArray[np.floating]) -> None:
        """Take in one sample's values."""
        if not x.size:
            return
        low, high = float(x.min()), float(x.max())
        if self.low > self.high:
            self.low, self.high = low, high
            return
        self.low += self.rate * (low - self.low)
        self.high += self.rate * (high - self.high)

    def merge(self, other: Self) -> None:
        """Refuse, unless one of the two has seen nothing.

        Raises:
            ValueError: Both have seen samples, whose common order isn't known.
        """
        if other.low > other.high:
            return
        if self.low <= self.high:
            raise ValueError("moving averages depend on order and can't merge; use mean-minmax")
        self.low, self.high = other.low, other.high

    def range(self) -> tuple[float, float]:
        """Return (low, high)."""
        if self.low > self.high:
            raise ValueError("nothing was observed")
        return self.low, self.high
