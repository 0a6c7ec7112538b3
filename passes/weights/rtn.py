"""Round to nearest: every weight on its own."""

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import Encoding, Spec, dequantize, encode_array, quantize
from qgraph.passes.weights.grid import RangeSearch, fit, round_to
from qgraph.passes.weights.loss import relative_loss

__all__ = ["relative_loss", "round_to_nearest"]


def round_to_nearest(
    weight: NDArray[np.floating],
    spec: Spec,
    gram: NDArray[np.floating] | None = None,
    *,
    signed: bool = False,
) -> tuple[NDArray[np.generic], Encoding, float]:
    """Quantize from the weight's own extremes.

    Args:
        weight: float [K, N], output channels last.
        spec: Type, symmetry and granularity (axis 1 for per channel).
        gram: X^T X, float [K, K], of the layer's inputs; used for the loss alone.
        signed: For symmetric specs, the scale that onnxruntime's quantizer of MatMulNBits
            weights takes; see `RangeSearch`.

    Returns:
        codes [K, N], their encoding, and the loss: squared error relative to the weight's squared
        size, both weighted by `gram` where given.

    Source: Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference:
        A whitepaper", section 2.
    """
    if signed and spec.symmetric:
        encoding = fit(weight, spec, RangeSearch(signed=True))
        codes = round_to(weight, encoding, spec)
    else:
        encoding = encode_array(weight, spec)
        codes = quantize(weight, encoding)
    return codes, encoding, relative_loss(weight, dequantize(codes, encoding), gram)
