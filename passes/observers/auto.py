"""Candidate ranges of one tensor from every observer, and which of them to take.

`auto` is no observer of its own: it computes the ranges of other, order-free observers from one
histogram and the samples' extremes, and chooses by the error on samples held back.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import Spec
from qgraph.passes.observers.histogram import Bins, Histogram
from qgraph.passes.observers.mean_minmax import MeanMinMax
from qgraph.passes.observers.mse import mse_range
from qgraph.passes.observers.percentile import percentile_range

Range = tuple[float, float]

# Entropy and other percentiles and norms were candidates once: they cost more than all of these
# together and moved the result by no more than the choice of samples does (docs/calibration.md).
_FROM_BINS: dict[str, Callable[[Bins, Spec], Range]] = {
    "minmax": lambda bins, spec: (bins.low, bins.high),
    "percentile 99.9": lambda bins, spec: percentile_range(bins, 99.9, spec),
    "percentile 99.99": lambda bins, spec: percentile_range(bins, 99.99, spec),
    "percentile 99.999": lambda bins, spec: percentile_range(bins, 99.999, spec),
    "mse": lambda bins, spec: mse_range(bins, 2.0, spec),
}
# Bins an octave: as fine as the search of `mse` looks, and percentiles are exact to 1 in 512.
BINS = 512
# The first of equally good ones is taken.
METHODS = ("mean-minmax", *_FROM_BINS)


@dataclass
class Statistics:
    """What the candidates of one tensor are computed from; merges exactly.

    Attributes:
        spec: The encoding that ranges are for.
        bins: Bins an octave; see `Histogram`.
    """

    spec: Spec
    bins: int = BINS
    histogram: Histogram = field(init=False)
    extremes: MeanMinMax = field(default_factory=MeanMinMax)

    def __post_init__(self) -> None:
        """Start empty."""
        self.histogram = Histogram(self.bins)

    def observe(self, x: NDArray[np.floating]) -> None:
        """Take in one sample's values.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        found = self.histogram.observe(x)
        if found is not None:
            self.extremes.observe(np.array(found))

    def merge(self, other: "Statistics") -> None:
        """Take in everything that `other` has seen."""
        self.histogram.merge(other.histogram)
        self.extremes.merge(other.extremes)

    @property
    def empty(self) -> bool:
        """Whether nothing was observed."""
        return not self.extremes.lows

    def candidates(self) -> dict[str, Range]:
        """Return every method's range, by its name.

        Raises:
            ValueError: Nothing was observed.
        """
        bins = self.histogram.result()
        found = {"mean-minmax": self.extremes.range()}
        found |= {name: method(bins, self.spec) for name, method in _FROM_BINS.items()}
        return found

    def range(self, method: str) -> Range:
        """Return one method's range.

        Raises:
            ValueError: Nothing was observed.
        """
        if method == "mean-minmax":
            return self.extremes.range()
        return _FROM_BINS[method](self.histogram.result(), self.spec)


def choose(errors: Mapping[str, Sequence[float]]) -> str:
    """Return the method with the least geometric mean of its errors over samples.

    The mean of the logarithms is the mean of the signal to noise ratios in decibels, so every
    sample counts alike. Sums would be ruled by the few samples with the largest values, and take
    ranges that are too wide for all others.

    Args:
        errors: By method, one positive error a sample, in an order that is the same for all.
    """
    # fsum is exact, hence independent of the samples' order.
    scores = {name: math.fsum(math.log(e) for e in found) for name, found in errors.items()}
    return min(scores, key=lambda name: scores[name])
