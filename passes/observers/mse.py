"""Range with the least error between values and what their codes stand for."""

from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import INTEGERS, Spec, encode_range
from qgraph.passes.observers.histogram import Bins, Histogram
from qgraph.passes.observers.percentile import UNSIGNED
from qgraph.passes.observers.search import best_range


@dataclass
class MeanSquaredError:
    """Range that minimises the sum of |x - dequantized x|^norm over all values.

    The error is computed at the middles of a histogram's bins, for ranges found by
    `qgraph.passes.observers.search.best_range`; rounding and clipping are those of the encoding
    that the range would get.

    Attributes:
        norm: Exponent of the error: 2 for squares; 2.4 weighs large errors, so clipping, higher.
        bins: Bins an octave; see `Histogram`.
        spec: The encoding that the range is for.

    Source: Choukroun et al. 2019, "Low-bit quantization of neural networks for efficient
        inference" (norm 2); Nagel et al. 2021, "A white paper on neural network quantization",
        section 3.1. Norm 2.4 is what the quantizer published with Frantar et al. 2022, "GPTQ",
        uses for weights.
    """

    name: ClassVar[str] = "mse"
    extremes_only: ClassVar[bool] = False
    ordered: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ("norm", "bins", "spec")

    norm: float = 2.0
    bins: int = 2048
    spec: Spec = UNSIGNED
    histogram: Histogram = field(init=False)

    def __post_init__(self) -> None:
        """Start empty."""
        if not 1 <= self.norm <= 8:
            raise ValueError(f"norm is {self.norm}; give 1 to 8, such as 2 or 2.4")
        self.histogram = Histogram(self.bins)

    def observe(self, x: NDArray[np.floating]) -> None:
        """Take in one sample's values."""
        self.histogram.observe(x)

    def merge(self, other: Self) -> None:
        """Take in everything that `other` has seen."""
        self.histogram.merge(other.histogram)

    def range(self) -> tuple[float, float]:
        """Return (low, high)."""
        return mse_range(self.histogram.result(), self.norm, self.spec)


def mse_range(bins: Bins, norm: float, spec: Spec) -> tuple[float, float]:
    """Return the range with the least sum of |error|^norm over the counted values."""
    middles, counts = bins.thinned()
    counted = counts > 0
    values = np.clip(middles, bins.low, bins.high)[counted]
    weights = counts[counted].astype(np.float64)
    first, last, _ = INTEGERS[spec.dtype]
    # Relative to the range, so that neither tiny nor huge values leave float64.
    size = max(-bins.low, bins.high, float(np.finfo(np.float32).tiny))

    def powered(found: NDArray[np.float64]) -> NDArray[np.float64]:
        np.abs(found, out=found)
        found /= size
        return np.square(found, out=found) if norm == 2 else np.power(found, norm, out=found)

    def clipping(low: float, high: float) -> float:
        """The part of the error that is due to values beyond [low, high]."""
        begin, end = np.searchsorted(values, [low, high])
        return float(
            powered(low - values[:begin]) @ weights[:begin]
            + powered(values[end:] - high) @ weights[end:]
        )

    def error(scale: float, zero: int) -> float:
        found = values / scale
        np.rint(found, out=found)
        np.clip(found, first - zero, last - zero, out=found)
        found *= scale
        found -= values
        return float(powered(found) @ weights)

    def cost(lows: NDArray[np.float64], highs: NDArray[np.float64]) -> NDArray[np.float64]:
        encodings = encode_range(lows, highs, spec)
        scales, zeros = encodings.scale.astype(np.float64), encodings.zero_point
        found = np.full(len(lows), np.inf)
        least, refused = np.inf, (np.inf, -np.inf)
        for i, (scale, zero) in enumerate(zip(scales.tolist(), zeros.tolist(), strict=True)):
            low, high = (first - zero) * scale, (last - zero) * scale
            # Most ranges lose by their clipping alone, and so do all inside such a range.
            if low >= refused[0] and high <= refused[1]:
                continue
            if clipping(low, high) > least:
                refused = (low, high)
                continue
            found[i] = error(scale, zero)
            least = min(least, found[i])
        return found

    return best_range(bins.low, bins.high, cost, symmetric=spec.symmetric)
