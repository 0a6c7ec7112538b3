"""The error that a quantized weight makes at its layer's output."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.arrays import host

# Rows of the Gram matrix that are converted and multiplied at a time.
_ROWS = 256
_DOUBLE = np.dtype(np.float64)


def column_losses(
    error: NDArray[Any], gram: NDArray[Any] | None = None, dtype: np.dtype[Any] = _DOUBLE
) -> NDArray[np.float64]:
    """Return e^T H e of every column e: each output channel's summed squared error, [N].

    Only the lower triangle of H is read, which halves the work.

    Args:
        error: E = weight - quantized weight, [K, N].
        gram: H = X^T X, symmetric [K, K]; None stands for the identity.
        dtype: Type of the products. float32 takes half the time and is good for comparisons.
    """
    e = error.astype(dtype, copy=False)
    if gram is None:
        return host(np.einsum("kn,kn->n", e, e, dtype=np.float64))
    total = np.zeros(e.shape[1])
    for start in range(0, len(e), _ROWS):
        rows = slice(start, start + _ROWS)
        h = gram[rows, : start + _ROWS].astype(dtype, copy=False)
        total += host(np.einsum("kn,kn->n", e[rows], h[:, start:] @ e[rows]))
        if start:
            total += 2 * host(np.einsum("kn,kn->n", e[rows], h[:, :start] @ e[:start]))
    # Rounding can push the loss of a nearly singular H just below zero.
    return np.maximum(total, 0.0)


def layer_loss(
    error: NDArray[Any], gram: NDArray[Any] | None = None, dtype: np.dtype[Any] = _DOUBLE
) -> float:
    """Return tr(E^T H E), the sum of all columns' losses; see `column_losses`."""
    return float(column_losses(error, gram, dtype).sum())


def relative_loss(
    weight: NDArray[Any], quantized: NDArray[Any], gram: NDArray[Any] | None = None
) -> float:
    """Return tr(E^T H E) / tr(W^T H W), where E = weight - quantized; 0 for a zero weight."""
    w = weight.astype(np.float64)
    size = layer_loss(w, gram)
    return layer_loss(w - quantized, gram) / size if size > 0 else 0.0
