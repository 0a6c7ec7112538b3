"""SqueezeLLM: a table of levels for each output channel, and outliers kept beside it.

The levels of a channel minimise sum f (w - level)^2 over its weights: one-dimensional k-means with
the weights' sensitivities f as masses. The largest and the most sensitive weights are kept exactly
in a sparse part and take no part in it.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import UsageError
from qgraph.passes.weights.kmeans import best_levels
from qgraph.passes.weights.loss import relative_loss
from qgraph.passes.weights.results import ChannelCodebook

# Shares of all weights (SqueezeLLM, section 5.1: 0.45 % in all).
LARGEST, SENSITIVE = 0.004, 0.0005


def squeeze(
    weight: NDArray[np.floating],
    gram: NDArray[np.floating] | None = None,
    *,
    bits: int = 4,
    largest: float = LARGEST,
    sensitive: float = SENSITIVE,
    sensitivity: NDArray[np.floating] | None = None,
) -> ChannelCodebook:
    """Quantize to levels found for each output channel.

    Args:
        weight: float [K, N], output channels last.
        gram: H = X^T X, float [K, K]: its diagonal is the sensitivity unless that is given.
        bits: 2 ** bits levels a channel, 1 to 8 bits.
        largest: Share of the weights, those of largest magnitude, that is kept exactly.
        sensitive: Share of the weights, those with the largest sensitivity * weight^2, that is.
        sensitivity: Expected squared gradient of the loss for each weight (the diagonal of the
            Fisher information), [K, N], not negative.

    Returns:
        Codes, tables and the sparse part, which holds what the looked-up level lacks.

    Raises:
        UsageError: Bits or shares are out of range.
        ValueError: The weight or the sensitivity is not finite, or negative.

    Source: Kim et al. 2023, "SqueezeLLM", arXiv 2306.07629, sections 4.1 and 4.2. The paper finds
        levels with k-means++; `best_levels` draws no lots, so that the same weight always gets
        the same table. That the sensitive
        weights are ranked with their square is ours: from a Gram matrix alone, whole rows tie.
    """
    if not 1 <= bits <= 8 or not 0 <= largest < 1 or not 0 <= sensitive < 1:
        raise UsageError(
            f"bits {bits}, shares {largest} and {sensitive}",
            fix="use 1 to 8 bits, shares in [0, 1)",
        )
    values = weight.astype(np.float32)
    masses = _masses(values, gram, sensitivity)
    kept = _top(np.abs(values), largest) | _top(masses * values.astype(np.float64) ** 2, sensitive)
    codebook = best_levels(values, np.where(kept, 0.0, masses), 2**bits)
    codes = nearest_levels(values, codebook)
    indices = np.argwhere(kept)
    looked_up = np.take_along_axis(codebook, codes, axis=0)
    result = ChannelCodebook(codes, codebook, indices, (values - looked_up)[kept], bits)
    return replace(result, loss=relative_loss(weight, result.dequantize(), gram))


def _masses(
    values: NDArray[np.float32],
    gram: NDArray[np.floating] | None,
    sensitivity: NDArray[np.floating] | None,
) -> NDArray[np.float64]:
    if sensitivity is None:
        rows = np.ones(len(values)) if gram is None else np.diag(gram).astype(np.float64)
        sensitivity = np.broadcast_to(np.maximum(rows, 0)[:, None], values.shape)
    masses = sensitivity.astype(np.float64)
    if masses.shape != values.shape:
        raise ValueError(f"sensitivity {masses.shape} for a weight {values.shape}")
    if not (np.isfinite(values).all() and np.isfinite(masses).all()) or (masses < 0).any():
        raise ValueError("the weight and its sensitivity must be finite, the latter not negative")
    # Weights that nothing depends on still get a level near them.
    mean = masses.mean() if masses.size else 0.0
    floor = 1e-6 * mean if mean > 0 else 1.0
    return np.maximum(masses, floor)


def _top(score: NDArray[np.floating], share: float) -> NDArray[np.bool_]:
    """Mark the given share of entries with the largest scores; of equal ones the first."""
    marked = np.zeros(score.size, bool)
    count = round(share * score.size)
    if count:
        marked[np.argsort(-score.reshape(-1), kind="stable")[:count]] = True
    return marked.reshape(score.shape)


def nearest_levels(values: NDArray[np.float32], codebook: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the codes of the nearest levels, [K, N]; levels ascend down each column."""
    borders = (codebook[1:].astype(np.float64) + codebook[:-1]) / 2
    codes = np.zeros(values.shape, np.uint8)
    for border in borders:
        codes += values > border
    return codes
