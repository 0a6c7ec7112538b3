"""Tables of each output channel (SqueezeLLM) as lookups in ONNX's own operators."""

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.passes.weight_forms._site import site, too_old
from qgraph.passes.weights.results import ChannelCodebook
from qgraph.pipeline import Reject


def channel_codebook(graph: Graph, node: Node, weight: ChannelCodebook) -> Value | Reject:
    """Write a weight as a lookup in its channels' tables, and the sparse part added.

    Before:
        y = MatMul(x, w)                                                        # w [K, N]

    After:
        dense = GatherElements <axis = 0> (table, Cast <to = int32> (codes))    # [K, N]
        w = ScatterND <reduction = "add"> (dense, indices, values)
        y = MatMul(x, w)

        Codes of up to 4 bits are stored in 4, wider ones in 8. Without a sparse part there is no
        ScatterND.

    Numerics:
        The weight is `dequantize()` bit for bit, in float32. Engines compute it when they load
        the model, or each time: the file is small, memory holds the weight in float.

    Args:
        graph: Graph to add to; `node` stays.
        node: The MatMul.
        weight: Codes of up to 8 bits, with a table a column.

    Returns:
        The value that replaces the MatMul's, or why there is none.

    Source:
        https://onnx.ai/onnx/operators/onnx__GatherElements.html, onnx__ScatterND.html beside it.
    """
    place = site(graph, node, weight, weight.codes.shape)
    if isinstance(place, str):
        return Reject(place)
    old = too_old(graph, "4-bit codes")
    if old:
        return Reject(old)
    dtype = np.dtype(ml_dtypes.uint4 if weight.width <= 4 else np.uint8)
    codes = place.derived(
        "codes", weight.codes, partial(_as_type, dtype=dtype), dtype, weight.codes.shape
    )
    index = place.insert("Cast", codes, role="index", attributes={"to": 6})
    table = place.constant("table", weight.codebook)
    found = place.insert("GatherElements", table, index, role="dense", attributes={"axis": 0})
    if len(weight.values):
        where = place.constant("indices", weight.indices)
        extra = place.constant("values", weight.values)
        found = place.insert(
            "ScatterND", found, where, extra, role="weight", attributes={"reduction": "add"}
        )
    return place.product(place.typed(found, "weight"))


def _as_type(codes: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return codes.astype(dtype)
