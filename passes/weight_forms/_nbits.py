"""How onnxruntime's MatMulNBits lays out codes, scales and zero points: arrays in, arrays out.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, MatMulNBits: B
is [N, blocks, bytes of a block], low bits first; zero points are packed along the blocks of each
row, whose last byte may have room to spare.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def unpack(packed: Bytes, bits: int) -> Bytes:
    """Split the bytes of the last axis: uint8 [..., n] to uint8 [..., n * 8 / bits]."""
    if bits == 8:
        return packed
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts: Bytes = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return parts.reshape(*packed.shape[:-1], -1)


def pack(codes: Bytes, bits: int) -> Bytes:
    """Join codes of the last axis into bytes, low bits first; room to spare is filled with 0."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    each = 8 // bits
    spare = -codes.shape[-1] % each
    if spare:
        room = np.zeros((*codes.shape[:-1], spare), np.uint8)
        codes = np.concatenate([codes, room], axis=-1)
    joined: Bytes = codes[..., 0::each].copy()
    for index in range(1, each):
        joined |= codes[..., index::each] << np.uint8(bits * index)
    return joined


def unpack_codes(packed: Bytes, bits: int, depth: int) -> Bytes:
    """Return codes [K, N] of a weight uint8 [N, blocks, bytes].

    Args:
        packed: As MatMulNBits holds it.
        bits: 2, 4 or 8.
        depth: K; the last block may be longer than what is left of it.
    """
    rows = unpack(packed, bits).reshape(packed.shape[0], -1)
    return np.ascontiguousarray(rows[:, :depth].T)


def pack_codes(codes: Bytes, bits: int, block: int, zero_point: Bytes) -> Bytes:
    """Return uint8 [N, blocks, bytes] for codes [K, N].

    Args:
        codes: uint8, every code of `bits` bits.
        bits: 2, 4 or 8.
        block: Codes in a block.
        zero_point: uint8 [blocks, N]; fills what is left of the last block, which so counts 0.
    """
    depth, width = codes.shape
    blocks = -(-depth // block)
    spare = blocks * block - depth
    if spare:
        codes = np.concatenate([codes, np.repeat(zero_point[-1:], spare, axis=0)])
    return pack(np.ascontiguousarray(codes.T).reshape(width, blocks, block), bits)


def unpack_zero_points(packed: Bytes, bits: int, blocks: int, width: int) -> Bytes:
    """Return zero points [blocks, N] of packed ones: uint8 of N * ceil(blocks * bits / 8) bytes."""
    rows = unpack(packed.reshape(width, -1), bits)
    return np.ascontiguousarray(rows[:, :blocks].T)


def pack_zero_points(zero_point: Bytes, bits: int) -> Bytes:
    """Return uint8 [N, ceil(blocks * bits / 8)] for zero points [blocks, N]."""
    return pack(np.ascontiguousarray(zero_point.T), bits)


def zero_point_bytes(bits: int, blocks: int, width: int) -> int:
    """Return how many bytes packed zero points take."""
    return width * -(-blocks * bits // 8)


def block_bytes(bits: int, block: int) -> int:
    """Return how many bytes a block takes."""
    return block * bits // 8


def by_block(values: NDArray[Any], blocks: int, width: int) -> NDArray[Any]:
    """Return [blocks, N] of values that lie row by row: N * blocks of them, in any shape."""
    return np.ascontiguousarray(values.reshape(width, blocks).T)
