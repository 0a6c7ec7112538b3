"""Round to nearest with ranges narrowed where that lowers the error."""

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import Encoding, Spec, dequantize
from qgraph.passes.weights.grid import SQUARED, RangeSearch, fit, round_to
from qgraph.passes.weights.loss import relative_loss


def clipped_rounding(
    weight: NDArray[np.floating],
    spec: Spec,
    gram: NDArray[np.floating] | None = None,
    *,
    search: RangeSearch = SQUARED,
    blockwise: bool = False,
) -> tuple[NDArray[np.generic], Encoding, float]:
    """Quantize each channel or block in the share of its range that has the least error.

    Outliers are clipped where the finer steps win more for all others. At 8 bits with one scale a
    channel that is hardly ever so; it is meant for 4 bits.

    Args:
        weight: float [K, N], output channels last.
        spec: Type, symmetry and granularity (axis 1 for per channel, axis 0 with a block).
        gram: X^T X, float [K, K], of the layer's inputs; its diagonal weighs the errors.
        search: Shares, norm of the error, and whether the scale's sign is searched too.
        blockwise: Decide by e^T H e with each block's own part H of `gram`, not its diagonal:
            the error of the layer's output if all other blocks were exact, as AWQ's search does.

    Returns:
        codes [K, N], their encoding, and the loss as `round_to_nearest` gives it.

    Raises:
        UsageError: The spec has another granularity.

    Source: Banner et al. 2019, "Post training 4-bit quantization of convolutional networks for
        rapid-deployment", section 3, with a search in place of the closed form; Lin et al. 2023,
        "AWQ", arXiv 2306.00978, for the blockwise one.
    """
    importance = None
    if gram is not None:
        importance = gram if blockwise else np.diag(gram)
    encoding = fit(weight, spec, search, importance)
    codes = round_to(weight, encoding, spec)
    return codes, encoding, relative_loss(weight, dequantize(codes, encoding), gram)
