"""Round to nearest: every weight on its own."""

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import Encoding, Spec, dequantize, encode_array, quantize


def round_to_nearest(
    weight: NDArray[np.floating], spec: Spec, gram: NDArray[np.floating] | None = None
) -> tuple[NDArray[np.generic], Encoding, float]:
    """Quantize from the weight's own extremes.

    Args:
        weight: float [K, N], output channels last.
        spec: Type, symmetry and granularity (axis 1 for per channel).
        gram: X^T X, float [K, K], of the layer's inputs; used for the loss alone.

    Returns:
        codes [K, N], their encoding, and the loss: squared error relative to the weight's squared
        size, both weighted by `gram` where given.

    Source: Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference:
        A whitepaper", section 2.
    """
    encoding = encode_array(weight, spec)
    codes = quantize(weight, encoding)
    return codes, encoding, relative_loss(weight, dequantize(codes, encoding), gram)


def relative_loss(
    weight: NDArray[np.floating],
    quantized: NDArray[np.floating],
    gram: NDArray[np.floating] | None = None,
) -> float:
    """Return tr(E^T H E) / tr(W^T H W), where E = weight - quantized; 0 for a zero weight."""
    w = weight.astype(np.float64)
    error = w - quantized
    if gram is None:
        loss, size = float(np.sum(error**2)), float(np.sum(w**2))
    else:
        loss = float(np.einsum("kn,kj,jn->", error, gram, error, optimize=True))
        size = float(np.einsum("kn,kj,jn->", w, gram, w, optimize=True))
    return loss / size if size > 0 else 0.0
