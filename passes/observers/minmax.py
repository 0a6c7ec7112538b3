"""Least and greatest value over all samples."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray


@dataclass
class MinMax:
    """Range from the least to the greatest value ever seen.

    Nothing that was seen is clipped; one outlier widens the steps for everything else.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", section 3.1.
    """

    name: ClassVar[str] = "minmax"
    extremes_only: ClassVar[bool] = True
    ordered: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()

    low: float = float("inf")
    high: float = float("-inf")

    def observe(self, x: NDArray[np.floating]) -> None:
        """Take in one sample's values."""
        if x.size:
            self.low = min(self.low, float(x.min()))
            self.high = max(self.high, float(x.max()))

    def merge(self, other: Self) -> None:
        """Take in everything that `other` has seen."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def range(self) -> tuple[float, float]:
        """Return (low, high)."""
        if self.low > self.high:
            raise ValueError("nothing was observed")
        return self.low, self.high
