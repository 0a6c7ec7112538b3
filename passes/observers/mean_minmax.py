"""Mean over samples of each sample's least and greatest value."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray


@dataclass
class MeanMinMax:
    """Range from the mean of per-sample minima to the mean of per-sample maxima.

    A rare outlier moves the range little, so the steps stay small for the bulk; values beyond
    are clipped. The per-sample extremes are kept (16 bytes a sample) and summed exactly, so the
    result is the same to the bit in whatever order and shards the samples came.

    Source: the averaging calibrator of Krishnamoorthi 2018, "Quantizing deep convolutional
        networks for efficient inference: A whitepaper", section 3.1.1, with one sample a batch.
    """

    name: ClassVar[str] = "mean-minmax"
    extremes_only: ClassVar[bool] = True
    ordered: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()

    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)

    def observe(self, x: NDArray[np.floating]) -> None:
        """Take in one sample's values."""
        if x.size:
            self.lows.append(float(x.min()))
            self.highs.append(float(x.max()))

    def merge(self, other: Self) -> None:
        """Take in everything that `other` has seen."""
        self.lows += other.lows
        self.highs += other.highs

    def range(self) -> tuple[float, float]:
        """Return (mean of minima, mean of maxima)."""
        if not self.lows:
            raise ValueError("nothing was observed")
        # fsum is exact, hence independent of order.
        return math.fsum(self.lows) / len(self.lows), math.fsum(self.highs) / len(self.highs)
