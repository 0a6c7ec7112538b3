"""Round to nearest with ranges narrowed where that lowers the squared error."""

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import Encoding, Spec, dequantize, encode_array, quantize
from qgraph.passes.weights.rtn import relative_loss

# Shares of the full range that are tried.
SHARES = np.linspace(1.0, 0.5, 26)


def clipped_rounding(
    weight: NDArray[np.floating], spec: Spec, gram: NDArray[np.floating] | None = None
) -> tuple[NDArray[np.generic], Encoding, float]:
    """Quantize each channel or block in the share of its range that has the least squared error.

    Outliers are clipped where the finer steps win more for all others. At 8 bits with one scale a
    channel that is hardly ever so; it is meant for 4 bits.

    Args:
        weight: float [K, N], output channels last.
        spec: Type, symmetry and granularity (axis 1 for per channel, axis 0 with a block).
        gram: X^T X, float [K, K], of the layer's inputs; its diagonal weighs the errors.

    Returns:
        codes [K, N], their encoding, and the loss as `round_to_nearest` gives it.

    Source: Banner et al. 2019, "Post training 4-bit quantization of convolutional networks for
        rapid-deployment", section 3, with a search in place of the closed form.
    """
    importance = np.ones(len(weight)) if gram is None else np.diag(gram).astype(np.float64)
    best = encode_array(weight, spec)
    least = _errors(weight, best, spec, importance[:, None])
    scale, zero = best.scale.copy(), best.zero_point.copy()
    for share in SHARES[1:]:
        tried = encode_array(weight * weight.dtype.type(share), spec)
        errors = _errors(weight, tried, spec, importance[:, None])
        better = errors < least
        least = np.where(better, errors, least)
        scale = np.where(better, tried.scale, scale)
        zero = np.where(better, tried.zero_point, zero)
    encoding = Encoding(best.dtype, scale, zero, best.block)
    codes = _codes(weight, encoding, spec)
    return codes, encoding, relative_loss(weight, dequantize(codes, encoding), gram)


def _codes(weight: NDArray[np.floating], encoding: Encoding, spec: Spec) -> NDArray[np.generic]:
    """Codes that the spec allows: beyond a narrowed range, `quantize` would use the lowest too."""
    codes = quantize(weight, encoding)
    low, high = spec.codes()
    return np.clip(codes.astype(np.int64), low, high).astype(codes.dtype)


def _errors(
    weight: NDArray[np.floating], encoding: Encoding, spec: Spec, importance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Squared error of everything that shares a scale, in the shape of the scales."""
    back = dequantize(_codes(weight, encoding, spec), encoding)
    errors = (weight.astype(np.float64) - back) ** 2 * importance
    if encoding.scale.ndim == 0:
        return np.asarray(errors.sum(), np.float64)
    for axis, length in enumerate(encoding.block):
        if length == 0:
            errors = errors.sum(axis=axis, keepdims=True)
        elif length > 1:
            errors = np.add.reduceat(errors, np.arange(0, errors.shape[axis], length), axis=axis)
    return errors
