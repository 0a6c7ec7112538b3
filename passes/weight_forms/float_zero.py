"""Codes with zero points that are no whole numbers (HQQ), in ONNX's own operators."""

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.passes.weight_forms._site import site, too_old
from qgraph.passes.weight_forms.matmul_nbits import float_zero_blocks
from qgraph.passes.weights.results import FloatZero
from qgraph.pipeline import Reject


def float_zero(graph: Graph, node: Node, weight: FloatZero) -> Value | Reject:
    """Write a weight as codes, zero points subtracted and scales multiplied in float.

    Before:
        y = MatMul(x, w)                                                        # w [K, N]

    After:
        blocks = Mul(Sub(Cast <to = float> (codes), zero_points), scales)       # [blocks, block, N]
        y = MatMul(x, Reshape(blocks, [K, N]))

        Where the last block is not full, a Slice takes the K rows. `matmul_nbits` is the form
        that onnxruntime runs fast; this one is for other engines, and for 8 bits.

    Numerics:
        The weight is `dequantize()` bit for bit, in float32.

    Args:
        graph: Graph to add to; `node` stays.
        node: The MatMul.
        weight: Codes of up to 8 bits.

    Returns:
        The value that replaces the MatMul's, or why there is none.
    """
    place = site(graph, node, weight, weight.codes.shape)
    if isinstance(place, str):
        return Reject(place)
    old = too_old(graph, "4-bit codes")
    if old:
        return Reject(old)
    found = float_zero_blocks(weight, 8)
    if isinstance(found, str):
        return Reject(found)
    assert found.zero_point is not None
    (depth, width), block = weight.codes.shape, found.block
    blocks = len(found.scale)
    dtype = np.dtype(ml_dtypes.uint4 if weight.width <= 4 else np.uint8)
    codes = place.derived(
        "codes",
        weight.codes,
        partial(_blocks, block=block, dtype=dtype),
        dtype,
        (blocks, block, width),
    )
    zero = place.constant("zero_points", np.ascontiguousarray(found.zero_point[:, None, :]))
    scale = place.constant("scales", np.ascontiguousarray(found.scale[:, None, :]))
    rows = place.insert("Cast", codes, role="floats", attributes={"to": 1})
    rows = place.insert("Sub", rows, zero, role="shifted")
    rows = place.insert("Mul", rows, scale, role="scaled")
    shape = place.constant("shape", np.array([-1, width], np.int64))
    rows = place.insert("Reshape", rows, shape, role="rows")
    if blocks * block != depth:
        ends = [
            place.constant(role, np.array([value], np.int64))
            for role, value in (("from", 0), ("to", depth), ("axis", 0))
        ]
        rows = place.insert("Slice", rows, *ends, role="kept")
    return place.product(place.typed(rows, "weight"))


def _blocks(codes: NDArray[Any], block: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return codes [K, N] as [blocks, block, N]; code 0 fills the last block."""
    room = np.zeros((-len(codes) % block, codes.shape[1]), codes.dtype)
    return np.concatenate([codes, room]).astype(dtype).reshape(-1, block, codes.shape[1])
