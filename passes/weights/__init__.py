"""Weight quantizers: arrays in, arrays out, no graph code."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import Encoding, Spec
from qgraph.passes.weights.results import QuantizedMatrix
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
    "gptq": "qgraph.passes.weights.gptq:gptq",
    "hqq": "qgraph.passes.weights.hqq:hqq",
}

# (weight float [K, N], gram float [K, K] or None) -> a result that is no uniform encoding.
MatrixQuantizer = Callable[[NDArray[np.floating], "NDArray[np.floating] | None"], QuantizedMatrix]

# The same for those; options (tables, bits, shares of outliers) are keywords.
MATRIX_QUANTIZERS = {
    "nf4": "qgraph.passes.weights.codebooks:nf4",
    "fp4": "qgraph.passes.weights.codebooks:fp4",
    "squeeze": "qgraph.passes.weights.squeeze:squeeze",
}


def weight_quantizer(name: str) -> WeightQuantizer:
    """Return a weight quantizer by name.

    Raises:
        UsageError: There is none; the nearest name is suggested.
    """
    found: WeightQuantizer = load(pick("weight quantizer", name, WEIGHT_QUANTIZERS))
    return found


def matrix_quantizer(name: str) -> MatrixQuantizer:
    """Return a weight quantizer whose result is a `QuantizedMatrix`, by name.

    Raises:
        UsageError: There is none; the nearest name is suggested.
    """
    found: MatrixQuantizer = load(pick("weight quantizer", name, MATRIX_QUANTIZERS))
    return found
