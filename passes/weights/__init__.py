"""Weight quantizers: arrays in, arrays out, no graph code."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import Encoding, Spec
from qgraph.registry import load, pick

# (weight float [K, N], spec, gram float [K, K] or None) -> codes [K, N], encoding, loss
WeightQuantizer = Callable[
    [NDArray[np.floating], Spec, "NDArray[np.floating] | None"],
    tuple[NDArray[np.generic], Encoding, float],
]

# name -> "module:function", one line a weight quantizer.
WEIGHT_QUANTIZERS = {
    "rtn": "qgraph.passes.weights.rtn:round_to_nearest",
    "clipped": "qgraph.passes.weights.clipped:clipped_rounding",
}


def weight_quantizer(name: str) -> WeightQuantizer:
    """Return a weight quantizer by name.

    Raises:
        UsageError: There is none; the nearest name is suggested.
    """
    found: WeightQuantizer = load(pick("weight quantizer", name, WEIGHT_QUANTIZERS))
    return found
