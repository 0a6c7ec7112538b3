"""Codes in blocks as onnxruntime's MatMulNBits: 2, 4 or 8 bits, whole or float zero points."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import INTEGERS
from qgraph.facts import QuantizedWeight
from qgraph.graph import Graph, Node, Value
from qgraph.passes.weight_forms import _nbits as nbits
from qgraph.passes.weight_forms._site import MICROSOFT, Site, in_type, site
from qgraph.passes.weight_forms.dequantize import layout
from qgraph.passes.weights.results import FloatZero
from qgraph.pipeline import Reject

# What onnxruntime 1.32's kernels take: blocks are powers of two of at least this, and with 2 bits
# of at most the other.
SMALLEST_BLOCK, LARGEST_TWO_BIT_BLOCK = 16, 256

# Bits that hold codes of a width: there are no kernels for 3.
_BITS = {2: 2, 3: 4, 4: 4, 8: 8}


@dataclass(frozen=True, eq=False)
class Blocks:
    """A weight in blocks of rows, with codes of any type.

    Attributes:
        codes: Integers [K, N].
        shift: Added to codes and whole zero points, so that none is negative.
        bits: 2, 4 or 8.
        block: Rows in a block.
        scale: float [ceil(K / block), N].
        zero_point: Same shape: int64 before the shift, or float; None for the middle code.
    """

    codes: NDArray[Any]
    shift: int
    bits: int
    block: int
    scale: NDArray[Any]
    zero_point: NDArray[Any] | None


def matmul_nbits(
    graph: Graph, node: Node, weight: QuantizedWeight | FloatZero, *, accuracy_level: int = 0
) -> Value | Reject:
    """Write a weight as MatMulNBits.

    Before:
        y = MatMul(x, w)                                                    # w [K, N]

    After:
        y = com.microsoft.MatMulNBits <K, N, bits, block_size> (x, packed, scales, zero_points)

    3-bit codes are held in 4 bits. One scale a column or tensor, and blocks whose length is no
    power of two, are repeated for shorter blocks, which changes no weight.

    Args:
        graph: Graph to add to; `node` stays.
        node: The MatMul.
        weight: Codes of 2, 3, 4 or 8 bits; FloatZero not of 8.
        accuracy_level: 0 and 1 compute in float; with 4 onnxruntime rounds the data to int8, in
            blocks of the weight's, where zero points are whole.

    Returns:
        The value that replaces the MatMul's, or why there is none.

    Source:
        https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
    """
    place = site(graph, node, weight, weight.codes.shape)
    if isinstance(place, str):
        return Reject(place)
    if weight.codes.ndim != 2:
        return Reject("MatMulNBits takes one matrix, not a batch of them")
    if isinstance(weight, FloatZero):
        found = float_zero_blocks(weight, _BITS.get(weight.width))
    else:
        found = uniform_blocks(weight)
    fitted = found if isinstance(found, str) else fit(found)
    if isinstance(fitted, str):
        return Reject(fitted)
    return write(place, fitted, accuracy_level)


def fit(found: Blocks) -> Blocks | str:
    """Return the same weight in blocks that the kernels take, or why there are none."""
    depth = found.codes.shape[0]
    floats = found.zero_point is not None and found.zero_point.dtype.kind == "f"
    if floats and found.bits == 8:
        return "MatMulNBits takes no float zero points with 8 bits"
    limit = LARGEST_TWO_BIT_BLOCK if found.bits == 2 else 1 << 30
    block = found.block
    if block >= SMALLEST_BLOCK and block & (block - 1) == 0 and block <= limit:
        return found
    if block >= depth:
        block = _cheapest(depth, found.bits, limit)
    else:
        block = min(block & -block, limit)
        if block < SMALLEST_BLOCK:
            return f"blocks of {found.block} are no multiple of {SMALLEST_BLOCK}"
    starts = np.arange(0, depth, block) // found.block
    zero = found.zero_point
    return Blocks(
        found.codes,
        found.shift,
        found.bits,
        block,
        found.scale[starts],
        None if zero is None else zero[starts],
    )


def write(place: Site, found: Blocks, accuracy_level: int) -> Value | Reject:
    """Add the MatMulNBits; return its result, or why there is none."""
    (depth, width), bits, block = found.codes.shape, found.bits, found.block
    if place.graph.rank(place.x) == 1:
        return Reject("x has one axis")
    scale = in_type(found.scale, place.float_type)
    if isinstance(scale, str):
        return Reject(scale)
    blocks, middle = -(-depth // block), 1 << (bits - 1)
    whole = np.full((blocks, width), middle, np.uint8)
    points: NDArray[Any] | None = None
    if found.zero_point is not None and found.zero_point.dtype.kind == "f":
        points = np.ascontiguousarray(found.zero_point.T.astype(place.float_type))
    elif found.zero_point is not None:
        whole = (found.zero_point + found.shift).astype(np.uint8)
        points = nbits.pack_zero_points(whole, bits) if (whole != middle).any() else None
    inputs = [
        place.x,
        place.derived(
            "packed",
            found.codes,
            partial(_packed, shift=found.shift, bits=bits, block=block, fill=whole),
            np.uint8,
            (width, blocks, nbits.block_bytes(bits, block)),
        ),
        place.constant("scales", np.ascontiguousarray(scale.T)),
    ]
    if points is not None:
        inputs.append(place.constant("zero_points", points))
    attributes = {"K": depth, "N": width, "bits": bits, "block_size": block}
    if accuracy_level:
        attributes["accuracy_level"] = accuracy_level
    return place.insert(
        "MatMulNBits",
        *inputs,
        role="nbits",
        attributes=attributes,
        domain=MICROSOFT,
        like=place.node.outputs[0],
    )


def uniform_blocks(weight: QuantizedWeight) -> Blocks | str:
    """Return codes with one uniform encoding as blocks."""
    low, high, _ = INTEGERS[weight.encoding.dtype]
    bits = _BITS.get((high - low + 1).bit_length() - 1)
    if bits is None:
        return f"its codes are {weight.encoding.dtype}"
    depth, width = weight.codes.shape
    found = layout(weight.encoding, weight.codes.shape)
    if isinstance(found, str):
        return found
    if found.attributes.get("axis") == 0 and "block_size" not in found.attributes:
        return "it has a scale a row"
    # One scale a column or tensor is one block of all rows.
    block = found.attributes.get("block_size", max(depth, 1))
    wanted = (-(-depth // block), width)
    shift = 1 << (bits - 1) if low < 0 else 0
    return Blocks(
        weight.codes,
        shift,
        bits,
        block,
        np.broadcast_to(found.scale, wanted),
        np.broadcast_to(found.zero_point, wanted),
    )


def float_zero_blocks(weight: FloatZero, bits: int | None) -> Blocks | str:
    """Return codes with float zero points as blocks, or why that can't be."""
    if bits is None:
        return f"its codes have {weight.width} bits"
    (depth, width), block = weight.codes.shape, weight.block or (0, 0)
    rows = block[0] or max(depth, 1)
    wanted = (-(-depth // rows), width)
    shape = weight.scale.shape or (1, 1)
    if block[1] > 1 or any(n not in (1, want) for n, want in zip(shape, wanted, strict=True)):
        return f"its blocks {list(block)} do not lie along the rows"
    scale, zero = weight.scale.reshape(shape), weight.zero_point.reshape(shape)
    return Blocks(
        weight.codes, 0, bits, rows, np.broadcast_to(scale, wanted), np.broadcast_to(zero, wanted)
    )


def _cheapest(depth: int, bits: int, limit: int) -> int:
    """Return the block length with which one scale a column takes the fewest bytes.

    The last block is stored whole: one block for 576 rows would have room for 1024.
    """
    longest = min(max(SMALLEST_BLOCK, 1 << (depth - 1).bit_length()), limit)
    lengths = [1 << p for p in range(SMALLEST_BLOCK.bit_length() - 1, longest.bit_length())]
    # Besides its codes a block has a scale of 4 bytes and up to one byte of zero point.
    return min(lengths, key=lambda length: (-(-depth // length) * (length * bits / 8 + 5), -length))


def _packed(
    codes: NDArray[Any], shift: int, bits: int, block: int, fill: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    # In bytes, which wrap around: signed codes become those from 0 without a wider copy.
    unsigned = codes.astype(np.int8 if shift else np.uint8).view(np.uint8) + np.uint8(shift)
    return nbits.pack_codes(unsigned, bits, block, fill)
