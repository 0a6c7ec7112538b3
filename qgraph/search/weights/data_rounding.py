"""What kernels lose that round their data to int8 on the fly, as MatMulNBits does at level 4."""

import numpy as np
from numpy.typing import NDArray

# Rows that are looked at.
ROWS = 128


def data_loss(x: NDArray[np.floating], weight: NDArray[np.floating], block: int) -> float:
    """Return the error energy of x W, relative to it, where x is rounded to int8 in blocks.

    Args:
        x: Data, [..., K] or [E, ..., K]; at most `ROWS` of its rows are looked at.
        weight: W, [K, N] or [E, K, N].
        block: Elements of a row that share a scale, the largest magnitude by 127; 0 for all.
    """
    experts = weight.reshape(-1, *weight.shape[-2:])
    rows = x.astype(np.float32, copy=False).reshape(len(experts), -1, weight.shape[-2])
    step = max(1, rows.shape[1] // ROWS)
    rows = rows[:, ::step][:, :ROWS]
    error = rows - rounded(rows, block)
    noise = signal = 0.0
    for each, own, matrix in zip(rows, error, experts, strict=True):
        noise += float(np.square(own @ matrix, dtype=np.float64).sum())
        signal += float(np.square(each @ matrix, dtype=np.float64).sum())
    return noise / signal if signal > 0 else 0.0


def rounded(rows: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Round rows [..., K] to int8 in blocks along the last axis, symmetric; the last may be short."""
    size = rows.shape[-1]
    block = block or size
    padded = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -size % block)])
    blocks = padded.reshape(*rows.shape[:-1], -1, block)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    codes = np.rint(blocks / np.where(scale > 0, scale, 1))
    found: NDArray[np.float32] = (codes * scale).reshape(padded.shape)[..., :size]
    return found
