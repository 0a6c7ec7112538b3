"""LLM.int8(): input channels with outliers stay in float, the rest becomes int8."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import SMALLEST_SCALE
from qgraph.passes.weights.loss import relative_loss
from qgraph.passes.weights.results import MixedInt8

THRESHOLD = 6.0


def split_outliers(
    weight: NDArray[np.floating],
    peak: NDArray[np.floating],
    gram: NDArray[np.floating] | None = None,
    *,
    threshold: float = THRESHOLD,
) -> MixedInt8:
    """Quantize the rows whose inputs stay small.

    Args:
        weight: float [K, N], output channels last.
        peak: Largest |x| of each input channel over the calibration data, [K].
        gram: X^T X, float [K, K]; used for the loss alone.
        threshold: Rows with a peak of at least this much stay in float.

    Returns:
        Rows in float, and rows in int8 with codes -127 to 127 and one scale an output channel,
        its largest weight among those rows / 127.

    Raises:
        ValueError: `peak` does not fit the weight, or a number is not finite.

    Source: Dettmers et al. 2022, "LLM.int8()", arXiv 2208.07339, sections 3.1 and 3.2. There the
        outlier channels are found anew in each batch; here they are constants of the model.
    """
    if peak.shape != weight.shape[:1]:
        raise ValueError(f"peaks {peak.shape} for a weight {weight.shape}")
    if np.isnan(peak).any() or not np.isfinite(weight).all():
        raise ValueError("the weight or the peaks are not finite")
    values = weight.astype(np.float32)
    large = peak >= threshold
    regular, outliers = np.flatnonzero(~large), np.flatnonzero(large)
    part = values[regular]
    bound = np.abs(part).max(axis=0, initial=0.0)
    scale = np.where(bound > 0, np.maximum(bound / 127, SMALLEST_SCALE), 1).astype(np.float32)
    codes = np.clip(np.rint(part / scale), -127, 127).astype(np.int8)
    result = MixedInt8(
        regular.astype(np.int64), codes, scale, outliers.astype(np.int64), values[outliers]
    )
    return replace(result, loss=relative_loss(weight, result.dequantize(), gram))
