"""Range whose codes lose the least information about the distribution of values."""

from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import Spec
from qgraph.passes.observers.histogram import Bins, Histogram
from qgraph.passes.observers.percentile import UNSIGNED, percentile_range
from qgraph.passes.observers.search import best_range

# With more codes than this the histogram is no finer than the codes, and nothing is lost.
MOST_CODES = 1024
# Percent of all values that bins of one width are made for.
WITHIN = 99.99
# Ranges that clip a larger share than this are not looked at: they can't be the best.
MOST_CLIPPED = 0.1


@dataclass
class Entropy:
    """Range that minimises the Kullback-Leibler divergence between values and codes.

    For a candidate range, P is the distribution over the histogram's bins inside it, with all
    values outside counted in the outermost bins, as clipping puts them there. Q is what can be
    told from the codes: the bins that share a code share the count inside the range (outliers
    not included, as in the source), spread evenly over the width of those that are not empty.
    The divergence is the sum of P log(P / Q) over the bins that are not empty. A candidate ends
    at bins that are not empty, so P is never positive where Q is zero.

    The bins have one width, as in the source: between `bins` and twice `bins` of them from zero
    to the bound that `WITHIN` percent of all values keep; those beyond it are wider, so that a
    huge outlier can't make all bins coarse (`Bins.coarsened`). The finer bins that `Histogram`
    has towards zero must not be used: the divergence would see the shape of the density inside
    the lowest codes, and narrow the range for its sake.

    Two things differ from the source. The bin about zero is set to the density of its neighbours:
    zeros, the half of all values behind a Relu, have a code of their own that represents them
    exactly, and must not pull the range together. Asymmetric encodings search both bounds.
    Encodings of 16 bits lose nothing that the histogram could show: they get the full range.

    Attributes:
        bins: Bins an octave; see `Histogram`.
        spec: The encoding that the range is for.

    Source: Migacz 2017, "8-bit inference with TensorRT", GPU Technology Conference, entropy
        calibration and its pseudocode.
    """

    name: ClassVar[str] = "entropy"
    extremes_only: ClassVar[bool] = False
    ordered: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ("bins", "spec")

    bins: int = 2048
    spec: Spec = UNSIGNED
    histogram: Histogram = field(init=False)

    def __post_init__(self) -> None:
        """Start empty."""
        self.histogram = Histogram(self.bins)

    def observe(self, x: NDArray[np.floating]) -> None:
        """Take in one sample's values."""
        self.histogram.observe(x)

    def merge(self, other: Self) -> None:
        """Take in everything that `other` has seen."""
        self.histogram.merge(other.histogram)

    def range(self) -> tuple[float, float]:
        """Return (low, high)."""
        return entropy_range(self.histogram.result(), self.spec)


def entropy_range(bins: Bins, spec: Spec) -> tuple[float, float]:
    """Return the range of least divergence for the counted values."""
    first, last = spec.codes()
    codes = last - first + 1
    if codes > MOST_CODES:
        return bins.low, bins.high
    cost = Divergence(evened(bins), codes)
    return best_range(bins.low, bins.high, cost, symmetric=spec.symmetric)


def evened(bins: Bins) -> Bins:
    """Return bins of one width for all values but outliers."""
    low, high = percentile_range(bins, WITHIN, UNSIGNED)
    bound = max(-low, high)
    return bins.coarsened(bound) if bound > 0 else bins


class Divergence:
    """Kullback-Leibler divergence between a histogram and itself behind codes, by range."""

    def __init__(self, bins: Bins, codes: int) -> None:
        """Prepare sums over all bins up to each edge.

        Args:
            bins: The histogram.
            codes: Number of codes that share the range evenly.
        """
        self.codes = codes
        self.edges, self.middles = bins.edges, bins.middles
        self.width = np.diff(bins.edges)
        self.counts = _without_zeros(bins, self.width)
        filled = self.counts > 0
        safe = np.where(filled, self.counts, 1.0)
        # Running sums: the sum over bins a to b - 1 is the difference of entries b and a.
        self.sum_counts = _running(self.counts)
        self.sum_filled = _running(filled.astype(np.float64))
        self.sum_width = _running(np.where(filled, self.width, 0.0))
        self.sum_plogp = _running(np.where(filled, safe * np.log(safe / self.width), 0.0))
        places = np.arange(len(self.counts))
        self.filled_before = np.maximum.accumulate(np.where(filled, places, -1))
        self.filled_after = np.minimum.accumulate(np.where(filled, places, len(self.counts))[::-1])[
            ::-1
        ]

    def __call__(
        self, lows: NDArray[np.float64], highs: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the divergence for each range, float64 [candidates].

        Infinite for ranges that clip more than `MOST_CLIPPED` of all values.
        """
        inside = self.sum_counts[np.searchsorted(self.middles, highs, side="right")]
        inside -= self.sum_counts[np.searchsorted(self.middles, lows)]
        possible = inside >= (1 - MOST_CLIPPED) * self.sum_counts[-1]
        found = np.full(len(lows), np.inf)
        if possible.any():
            found[possible] = self._of(lows[possible], highs[possible])
        return found

    def _of(self, lows: NDArray[np.float64], highs: NDArray[np.float64]) -> NDArray[np.float64]:
        size, total = len(self.counts), float(self.sum_counts[-1])
        begin = np.clip(np.searchsorted(self.middles, lows), 0, size - 1)
        end = np.clip(np.searchsorted(self.middles, highs, side="right") - 1, 0, size - 1)
        begin = np.minimum(self.filled_after[begin], size - 1)
        end = np.maximum(self.filled_before[end], 0)
        steps = (highs - lows)[:, None] / (self.codes - 1)
        borders = lows[:, None] + (np.arange(self.codes - 1) + 0.5) * steps
        inner = np.searchsorted(self.middles, borders)
        groups = np.clip(inner, begin[:, None], end[:, None] + 1)
        groups = np.concatenate([begin[:, None], groups, end[:, None] + 1], axis=1)
        shared = np.diff(self.sum_counts[groups], axis=1)
        width = np.diff(self.sum_width[groups], axis=1)
        filled = shared > 0
        density = np.where(filled, shared, 1.0) / np.where(filled, width, 1.0)
        told = (np.where(filled, shared, 0.0) * np.log(density)).sum(axis=1)
        inside = self.sum_counts[end + 1] - self.sum_counts[begin]
        divergence = self.sum_plogp[end + 1] - self.sum_plogp[begin] - told
        for edge, outside in (
            (begin, self.sum_counts[begin]),
            (end, total - self.sum_counts[end + 1]),
        ):
            code = np.argmax(groups[:, 1:] > edge[:, None], axis=1)
            rows = np.arange(len(lows))
            count, bin_width = self.counts[edge], self.width[edge]
            clipped = count + outside
            with np.errstate(divide="ignore", invalid="ignore"):
                more = clipped * np.log(clipped / bin_width) - count * np.log(count / bin_width)
                more -= outside * np.log(density[rows, code])
            divergence += np.where(outside > 0, more, 0.0)
        # A range of hardly any bins has P = Q again, all of it clipped: as in the source, there must
        # be at least as many bins as codes.
        filled_bins = self.sum_filled[end + 1] - self.sum_filled[begin]
        enough = filled_bins >= min(self.codes, self.sum_filled[-1])
        with np.errstate(divide="ignore", invalid="ignore"):
            result: NDArray[np.float64] = divergence / total + np.log(inside / total)
        return np.where((inside > 0) & (begin <= end) & enough, result, np.inf)


def _without_zeros(bins: Bins, width: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the counts with the bin about zero at the mean density of the bins beside it."""
    counts = bins.counts.astype(np.float64)
    beside = [i for i in (bins.zero - 1, bins.zero + 1) if 0 <= i < len(counts)]
    density = sum(counts[i] / width[i] for i in beside) / max(len(beside), 1)
    counts[bins.zero] = density * width[bins.zero] if beside else counts[bins.zero]
    return counts


def _running(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(values)])
