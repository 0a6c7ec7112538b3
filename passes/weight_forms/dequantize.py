"""Codes with one uniform encoding as DequantizeLinear: the form that every engine reads."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import INTEGERS, Encoding
from qgraph.facts import QuantizedWeight
from qgraph.graph import Graph, Node, Value
from qgraph.passes.weight_forms._site import TWO_BITS_SINCE, in_type, site, too_old
from qgraph.pipeline import Reject

# onnxruntime 1.32 makes MatMulNBits of a DequantizeLinear and a MatMul. With 2 bits and a number
# of columns that is no multiple of this, the products it gets are wrong.
TWO_BIT_COLUMNS = 4

# Types that hold the codes of narrower ones.
CONTAINERS = {"int2": "int4", "uint2": "uint4", "int3": "int4", "uint3": "uint4"}


@dataclass(frozen=True, eq=False)
class Layout:
    """An encoding as DequantizeLinear takes it.

    Attributes:
        scale: float32, of one element, [channels], or one a block and index of other axes.
        zero_point: int64, same shape.
        attributes: `axis`, and `block_size` where there are blocks.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    attributes: dict[str, int]


def dequantize_linear(
    graph: Graph, node: Node, weight: QuantizedWeight, *, two_bits: bool = False
) -> Value | Reject:
    """Write a weight as DequantizeLinear in front of a MatMul.

    Before:
        y = MatMul(x, w)                                        # w [K, N] or [E, K, N]

    After:
        w = DequantizeLinear <axis, block_size> (codes, scale, zero_point)
        y = MatMul(x, w)

    3-bit codes are held in 4-bit types, since ONNX has none of 3 bits; so are 2-bit ones unless
    `two_bits` asks for ONNX's own.

    Args:
        graph: Graph to add to; `node` stays.
        node: The MatMul.
        weight: Codes of any width up to 8 bits, with one scale, one a column, or blocks of rows.
        two_bits: Store 2-bit codes as INT2 or UINT2. Needs opset 25 and N a multiple of 4.

    Returns:
        The value that replaces the MatMul's, or why there is none.

    Source:
        https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html.
    """
    place = site(graph, node, weight, weight.codes.shape)
    if isinstance(place, str):
        return Reject(place)
    container = code_type(graph, weight, two_bits)
    found = layout(weight.encoding, weight.codes.shape)
    if isinstance(container, Reject):
        return container
    if isinstance(found, str):
        return Reject(found)
    scale = in_type(found.scale, place.float_type)
    if isinstance(scale, str):
        return Reject(scale)
    blocked = "block_size" in found.attributes
    old = too_old(graph, "blocks" if blocked else "4-bit codes")
    if old and (blocked or container.endswith("4")):
        return Reject(old)
    dtype = INTEGERS[container][2]
    inputs = [
        place.derived(
            "codes", weight.codes, partial(_stored, dtype=dtype), dtype, weight.codes.shape
        ),
        place.constant("scale", scale),
    ]
    if found.zero_point.any():
        inputs.append(place.constant("zero_point", found.zero_point.astype(dtype)))
    floats = place.insert("DequantizeLinear", *inputs, role="weight", attributes=found.attributes)
    return place.product(floats)


def code_type(graph: Graph, weight: QuantizedWeight, two_bits: bool) -> str | Reject:
    """Return the type that holds the codes, or why there is none."""
    dtype = weight.encoding.dtype
    if not dtype.endswith(("2", "3", "4", "8")) or dtype == "int32":
        return Reject(f"its codes are {dtype}, of more than 8 bits")
    if not (two_bits and dtype.endswith("2")):
        return CONTAINERS.get(dtype, dtype)
    columns = weight.codes.shape[-1]
    old = too_old(graph, "2-bit types", TWO_BITS_SINCE)
    if old:
        return Reject(old)
    if columns % TWO_BIT_COLUMNS:
        return Reject(
            f"onnxruntime computes 2-bit weights of {columns} columns wrongly: "
            f"{columns} is no multiple of {TWO_BIT_COLUMNS}"
        )
    return dtype


def layout(encoding: Encoding, shape: tuple[int, ...]) -> Layout | str:
    """Return an encoding of a weight [..., K, N] as DequantizeLinear takes it, or why it can't."""
    scale, zero = encoding.scale, encoding.zero_point
    if scale.size == 1:
        return Layout(scale.reshape(()), zero.reshape(()), {})
    if scale.ndim != len(shape):
        return f"its scales have {scale.ndim} axes, it has {len(shape)}"
    depth = len(shape) - 2
    varying = [axis for axis, length in enumerate(scale.shape) if length > 1]
    if len(varying) == 1 and encoding.block[varying[0]] == 1 and encoding.block[depth] <= 1:
        return Layout(scale.reshape(-1), zero.reshape(-1), {"axis": varying[0]})
    if any(length > 1 for axis, length in enumerate(encoding.block) if axis != depth):
        return f"its blocks {list(encoding.block)} do not lie along the rows"
    block = encoding.block[depth] or shape[depth]
    wanted = (*shape[:depth], -(-shape[depth] // block), shape[-1])
    if any(have not in (1, want) for have, want in zip(scale.shape, wanted, strict=True)):
        return f"its scales {list(scale.shape)} do not fit its shape {list(shape)}"
    return Layout(
        np.broadcast_to(scale, wanted).copy(),
        np.broadcast_to(zero, wanted).copy(),
        {"axis": depth, "block_size": block},
    )


def _stored(codes: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(codes.astype(dtype))
