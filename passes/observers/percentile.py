"""Range that holds a given percentage of all values."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import Spec
from qgraph.passes.observers.histogram import Bins, Histogram

UNSIGNED = Spec("uint8", symmetric=False)


@dataclass
class Percentile:
    """Range within which at least `percentile` percent of the counted values lie.

    Half of the rest may lie beyond each bound; for symmetric encodings, all of it beyond
    [-b, b]. The bounds are outer edges of the bins in which the limits fall, so they are exact to
    1 part in `bins`, and never outside of what was observed.

    Attributes:
        percentile: Share of the values inside, percent: 50 to 100.
        bins: Bins an octave; see `Histogram`.
        spec: The encoding that the range is for; only its symmetry matters.

    Source: McKinstry et al. 2018, "Discovering low-precision networks close to full-precision
        networks for efficient embedded inference"; Wu et al. 2020, "Integer quantization for deep
        learning inference: principles and empirical evaluation", section 3.3.
    """

    name: ClassVar[str] = "percentile"
    extremes_only: ClassVar[bool] = False
    ordered: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ("percentile", "bins", "spec")

    percentile: float = 99.99
    bins: int = 2048
    spec: Spec = UNSIGNED
    histogram: Histogram = field(init=False)

    def __post_init__(self) -> None:
        """Start empty."""
        if not 50 <= self.percentile <= 100:
            raise ValueError(f"percentile is {self.percentile}; give 50 to 100, such as 99.99")
        self.histogram = Histogram(self.bins)

    def observe(self, x: NDArray[np.floating]) -> None:
        """Take in one sample's values."""
        self.histogram.observe(x)

    def merge(self, other: Self) -> None:
        """Take in everything that `other` has seen."""
        self.histogram.merge(other.histogram)

    def range(self) -> tuple[float, float]:
        """Return (low, high)."""
        return percentile_range(self.histogram.result(), self.percentile, self.spec)


def percentile_range(bins: Bins, percentile: float, spec: Spec) -> tuple[float, float]:
    """Return the range that holds `percentile` percent of the counted values."""
    # As it was written: 100 - 99.9 is not 0.1 in floats.
    outside = int(bins.counts.sum()) * (100 - Fraction(str(percentile))) / 100
    if spec.symmetric:
        sizes = np.maximum(np.abs(bins.edges[:-1]), np.abs(bins.edges[1:]))
        order = np.argsort(sizes, kind="stable")
        place = _crossing(bins.counts[order][::-1], int(outside))
        bound = float(sizes[order][::-1][place])
        bound = min(bound, max(-bins.low, bins.high, 0.0))
        return -bound, bound
    low = bins.edges[_crossing(bins.counts, int(outside / 2))]
    high = bins.edges[::-1][_crossing(bins.counts[::-1], int(outside / 2))]
    return max(float(low), bins.low), min(float(high), bins.high)


def _crossing(counts: NDArray[np.int64], allowed: int) -> int:
    """Index of the first bin that can't be left out together with all before it."""
    return int(np.searchsorted(np.cumsum(counts), allowed, side="right"))
