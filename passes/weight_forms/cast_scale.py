"""Uniform codes, with whole or float zero points, in ONNX's elementwise operators."""

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import INTEGERS
from qgraph.facts import QuantizedWeight
from qgraph.graph import Graph, Node, Value
from qgraph.passes.weight_forms._site import site, too_old
from qgraph.passes.weight_forms.dequantize import CONTAINERS
from qgraph.passes.weight_forms.matmul_nbits import float_zero_blocks, uniform_blocks
from qgraph.passes.weights.results import FloatZero
from qgraph.pipeline import Reject


def cast_scale(graph: Graph, node: Node, weight: QuantizedWeight | FloatZero) -> Value | Reject:
    """Write a weight as codes, zero points subtracted and scales multiplied in float.

    Before:
        y = MatMul(x, w)                                                        # w [K, N]

    After:
        blocks = Mul(Sub(Cast <to = float> (codes), zero_points), scales)       # [blocks, block, N]
        y = MatMul(x, Reshape(blocks, [K, N]))

        Zero points are left out where all are 0. Where the last block is not full, a Slice takes
        the K rows. Engines compute the weight when they load the model: the file is small, memory
        and speed are those of floats. That beats onnxruntime's DequantizeLinear of 8 bits, which
        it computes at every run, and its MatMulNBits with float zero points.

    Numerics:
        The weight is the simulation bit for bit, in float32.

    Args:
        graph: Graph to add to; `node` stays.
        node: The MatMul.
        weight: Codes of up to 8 bits; 2 and 3 are held in 4.

    Returns:
        The value that replaces the MatMul's, or why there is none.
    """
    place = site(graph, node, weight, weight.codes.shape)
    if isinstance(place, str):
        return Reject(place)
    old = too_old(graph, "4-bit codes")
    if old:
        return Reject(old)
    if weight.codes.ndim != 2:
        return Reject("it is a batch of matrices")
    if isinstance(weight, FloatZero):
        found = float_zero_blocks(weight, weight.width if weight.width <= 8 else None)
        dtype = np.dtype(ml_dtypes.uint4 if weight.width <= 4 else np.uint8)
    else:
        found = uniform_blocks(weight)
        dtype = INTEGERS[CONTAINERS.get(weight.encoding.dtype, weight.encoding.dtype)][2]
    if isinstance(found, str):
        return Reject(found)
    assert found.zero_point is not None
    (depth, width), block = weight.codes.shape, found.block
    blocks = len(found.scale)
    codes = place.derived(
        "codes",
        weight.codes,
        partial(_blocks, block=block, dtype=dtype),
        dtype,
        (blocks, block, width),
    )
    scale = place.constant("scales", np.ascontiguousarray(found.scale[:, None, :]))
    rows = place.insert("Cast", codes, role="floats", attributes={"to": 1})
    if found.zero_point.any():
        points = found.zero_point.astype(np.float32)[:, None, :]
        rows = place.insert("Sub", rows, place.constant("zero_points", points), role="shifted")
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
