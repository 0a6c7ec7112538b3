"""Counts of values by magnitude, in bins as float32 itself spaces its numbers."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qgraph.passes.observers.sampling import stride

MANTISSA_BITS = 23
MAGNITUDE = 0x7FFFFFFF
SMALLEST_NORMAL = 2.0**-126
# Magnitudes below 2^-23 of the greatest count as zero: an outlier a million times as large as the
# rest leaves enough of the rest to see.
OCTAVES = 24


def check_bins(bins: int) -> None:
    """Refuse numbers of bins that float32's spacing can't give.

    Raises:
        ValueError: `bins` is no power of two between 256 and 8192.
    """
    if not (256 <= bins <= 8192 and bins & (bins - 1) == 0):
        raise ValueError(f"bins is {bins}; give a power of two between 256 and 8192")


@dataclass(frozen=True)
class Bins:
    """Counted bins from the least to the greatest value, one of them about zero.

    Attributes:
        edges: float64 [n + 1], ascending; values in [edges[i], edges[i + 1]) are in bin i where
            they are positive, in (edges[i], edges[i + 1]] where negative.
        counts: int64 [n].
        zero: Index of the bin about zero, which is symmetric where there are negative values.
        low: Least value, exactly.
        high: Greatest value, exactly.
        per_octave: Bins in each octave of magnitude, but for the one that zero's bin reaches into.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    zero: int
    low: float
    high: float
    per_octave: int

    @property
    def middles(self) -> NDArray[np.float64]:
        """Middle of each bin, float64 [n]; 0 for the bin about zero."""
        middles: NDArray[np.float64] = (self.edges[1:] + self.edges[:-1]) / 2
        middles[self.zero] = 0.0
        return middles

    def coarsened(self, bound: float) -> "Bins":
        """Return the counts with all narrower bins merged to the width of those at `bound`.

        So there are between `per_octave` and twice as many bins, of one width, from zero to
        `bound`; bins beyond stay as they are. The merge is exact.

        Args:
            bound: A magnitude, positive.
        """
        width = max(2.0 ** (math.frexp(bound)[1] - 1), SMALLEST_NORMAL) / self.per_octave
        inner = np.minimum(np.abs(self.edges[:-1]), np.abs(self.edges[1:]))
        inner[self.zero] = 0.0
        # Whole steps: wider bins begin and end at some, as all widths are powers of two.
        steps = np.floor(inner / width)
        steps[: self.zero] *= -1
        begins = np.flatnonzero(np.diff(steps, prepend=-np.inf))
        steps = steps[begins]
        zero = int(np.searchsorted(steps, 0.0))
        outer = np.ceil(np.maximum(np.abs(self.edges[:-1]), np.abs(self.edges[1:])) / width)
        edges = np.append(steps, max(outer[-1], 1.0))
        edges[:zero] = -outer[begins[:zero]]
        if self.edges[0] < 0:  # the bin about zero is symmetric, and may be wider than one step
            edges[zero] = -max(math.floor(-self.edges[self.zero] / width), 1)
        counts = np.add.reduceat(self.counts, begins)
        return Bins(edges * width, counts, zero, self.low, self.high, self.per_octave)

    def thinned(self, least: int = 256) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return middles and counts of fewer bins: each octave down has half as many.

        Args:
            least: Bins that an octave keeps.
        """
        # Positions in `edges`; its i-th edge away from zero stands at zero + i, or zero + 1 - i.
        above = self.zero + _kept(len(self.counts) - self.zero, self.per_octave, least)
        below = self.zero + 1 - _kept(self.zero + 1, self.per_octave, least)
        if self.edges[0] == 0:
            below = np.zeros(1, np.int64)
        chosen = np.concatenate([below[::-1], above])
        edges = self.edges[chosen]
        middles = (edges[1:] + edges[:-1]) / 2
        middles[int(np.searchsorted(chosen, self.zero, side="right")) - 1] = 0.0
        return middles, np.add.reduceat(self.counts, chosen[:-1])


@dataclass
class Histogram:
    """Counts of a tensor's values.

    A value's bin is its sign, its exponent and the leading bits of its mantissa: each octave
    [2^e, 2^(e+1)) is cut into `bins` bins of one width, a power of two. A bin is thus at most
    1 / bins of the values in it, however far outliers lie from the rest, and where a value falls
    never depends on other values. The lowest octaves join the bin about zero when a greater
    magnitude arrives. So the counts are a function of the values alone: batches, order and
    shards leave no trace, and adding the counts of two histograms is exact.

    Of an array with more than `ENOUGH` elements every n-th is counted, as n values, and the two
    extremes, as one each; n depends on the array's size alone. So a sample is shown as one array.

    The memory is 384 bytes times `bins` (768 KB for 2,048).

    Attributes:
        bins: Bins an octave, a power of two.
        low: Least value seen.
        high: Greatest value seen.
    """

    bins: int = 2048
    low: float = float("inf")
    high: float = float("-inf")
    _top: int = 0
    _counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        """Start empty."""
        check_bins(self.bins)
        # Negative values descend from the middle, the others ascend.
        self._counts = np.zeros(2 * OCTAVES * self.bins, np.int64)

    def observe(self, x: NDArray[np.floating]) -> tuple[float, float] | None:
        """Count one sample's values, any shape; float32, or rounded to it.

        Returns:
            Its least and greatest value, None if it is empty.

        Raises:
            ValueError: A value is NaN or infinite; nothing is counted then.
        """
        if not x.size:
            return None
        flat = np.ascontiguousarray(x, np.float32).reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("a value is NaN or infinite")
        self._extend(low, high)
        step = stride(flat.size)
        self._count(flat[::step], step)
        if step > 1:
            self._count(np.array([low, high], np.float32), 1)
        return low, high

    def merge(self, other: "Histogram") -> None:
        """Add everything that `other` counted.

        Raises:
            ValueError: The other histogram has another number of bins.
        """
        if other.bins != self.bins:
            raise ValueError(f"histograms of {self.bins} and {other.bins} bins can't be merged")
        if other.low > other.high:
            return
        self._extend(other.low, other.high)
        self._counts += _lowered(other._counts, self._base() - other._base())

    def result(self) -> Bins:
        """Return the occupied bins.

        Raises:
            ValueError: Nothing was observed.
        """
        if self.low > self.high:
            raise ValueError("nothing was observed")
        half = len(self._counts) // 2
        # Edge i is the least magnitude with code base + i; the innermost is zero.
        codes = np.arange(half + 1, dtype=np.int64) + self._base()
        magnitudes = (codes << self._shift()).astype(np.int32).view(np.float32).astype(np.float64)
        if not np.isfinite(magnitudes[-1]):
            magnitudes[-1] = 2.0**128
        below, above = self._counts[:half][::-1], self._counts[half:]
        last_below = int(np.max(np.nonzero(below)[0], initial=0)) if self.low < 0 else 0
        last_above = int(np.max(np.nonzero(above)[0], initial=0))
        inner = below[0] + above[0]
        counts = np.concatenate(
            [below[1 : last_below + 1][::-1], [inner], above[1 : last_above + 1]]
        )
        edges = np.concatenate(
            [
                -magnitudes[1 : last_below + 2][::-1] if self.low < 0 else [0.0],
                magnitudes[1 : last_above + 2],
            ]
        )
        return Bins(edges, counts, last_below, self.low, self.high, self.bins)

    # -- bins ------------------------------------------------------------------------------------

    def _shift(self) -> int:
        return MANTISSA_BITS - (self.bins.bit_length() - 1)

    def _base(self) -> int:
        """Leading bits of the magnitudes that share the bin about zero with all lesser ones."""
        return max(self._top - OCTAVES + 1, 0) * self.bins

    def _extend(self, low: float, high: float) -> None:
        """Make room for values between `low` and `high`."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        size = np.float32(max(abs(low), abs(high)))
        top = int(size.view(np.int32)) >> MANTISSA_BITS
        if top > self._top:
            old = self._base()
            self._top = top
            self._counts = _lowered(self._counts, self._base() - old)

    def _count(self, x: NDArray[np.float32], times: int) -> None:
        """Count each of some values so many times, float32 [n]."""
        bits = np.ascontiguousarray(x).view(np.int32)
        codes = np.bitwise_and(bits, MAGNITUDE)
        np.right_shift(codes, self._shift(), out=codes)
        np.subtract(codes, self._base(), out=codes)
        # An array: with a number numpy takes three times as long.
        np.maximum(codes, np.zeros(len(codes), np.int32), out=codes)
        signs = bits >> 31
        start = len(self._counts) // 2
        if signs.any():  # i, or -1 - i where negative
            np.bitwise_xor(codes, signs, out=codes)
            np.add(codes, start, out=codes)
            start = 0
        found = np.bincount(codes)
        self._counts[start : start + len(found)] += found * times if times > 1 else found


def _lowered(counts: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Move counts `steps` bins towards zero; those that reach it join there."""
    if steps == 0:
        return counts
    half = len(counts) // 2
    steps = min(steps, half - 1)
    moved = np.zeros_like(counts)
    for old, new in ((counts[half:], moved[half:]), (counts[:half][::-1], moved[:half][::-1])):
        new[0] = old[: steps + 1].sum()
        new[1 : half - steps] = old[steps + 1 :]
    return moved


def _kept(last: int, per_octave: int, least: int) -> NDArray[np.int64]:
    """Which of the edges 1 to `last`, counted away from zero, a thinned histogram keeps."""
    edges: NDArray[np.int64] = np.arange(1, last + 1)
    octaves_down = (last - 1) // per_octave - edges // per_octave
    steps = np.minimum(per_octave // least, 2 ** np.maximum(octaves_down, 0))
    kept: NDArray[np.int64] = edges[(edges % steps == 0) | (edges == 1) | (edges == last)]
    return kept
