"""NF4 and FP4: onnxruntime's MatMulBnb4, and the same weight in ONNX's own operators."""

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.passes.weight_forms._site import MICROSOFT, in_type, site, too_old
from qgraph.passes.weights.codebooks import FP4, NF4
from qgraph.passes.weights.results import BlockCodebook
from qgraph.pipeline import Reject

# MatMulBnb4's tables by its quant_type, and the only block lengths it takes.
TABLES = {0: FP4, 1: NF4}
BLOCKS = (16, 32, 64, 128, 256)


def matmul_bnb4(graph: Graph, node: Node, weight: BlockCodebook) -> Value | Reject:
    """Write a weight as MatMulBnb4.

    Before:
        y = MatMul(x, w)                                                        # w [K, N]

    After:
        y = com.microsoft.MatMulBnb4 <K, N, block_size, quant_type> (x, packed, absmax)

    Args:
        graph: Graph to add to; `node` stays.
        node: The MatMul.
        weight: Indices into the table of NF4 or FP4, in blocks of 16, 32, 64, 128 or 256.

    Returns:
        The value that replaces the MatMul's, or why there is none.

    Source:
        https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
    """
    place = site(graph, node, weight, weight.codes.shape)
    if isinstance(place, str):
        return Reject(place)
    kind = next((k for k, table in TABLES.items() if np.array_equal(table, weight.table)), None)
    if kind is None:
        return Reject("MatMulBnb4 has the tables of NF4 and FP4 alone")
    if weight.block not in BLOCKS:
        return Reject(f"MatMulBnb4 has no blocks of {weight.block}, only {list(BLOCKS)}")
    absmax = in_type(weight.absmax, place.float_type)
    if isinstance(absmax, str):
        return Reject(absmax)
    depth, width = weight.codes.shape
    return place.insert(
        "MatMulBnb4",
        place.x,
        place.derived("bnb4", weight.codes, pack, np.uint8, (-(-depth * width // 2),)),
        place.constant("absmax", absmax),
        role="bnb4",
        attributes={"K": depth, "N": width, "block_size": weight.block, "quant_type": kind},
        domain=MICROSOFT,
        like=node.outputs[0],
    )


def block_codebook(graph: Graph, node: Node, weight: BlockCodebook) -> Value | Reject:
    """Write a weight as a lookup in its table, with ONNX's own operators.

    Before:
        y = MatMul(x, w)                                                        # w [K, N]

    After:
        levels = Gather(table, Cast <to = int32> (codes))                       # [blocks, block]
        rows = Reshape(Mul(levels, absmax), [N, K])
        y = MatMul(x, Transpose(rows))

        Where the last block is not full, a Slice takes the N * K weights.

    Numerics:
        The weight is `dequantize()` bit for bit. Engines compute it when they load the model, or
        each time.

    Args:
        graph: Graph to add to; `node` stays.
        node: The MatMul.
        weight: Indices into any table of 16.

    Returns:
        The value that replaces the MatMul's, or why there is none.
    """
    place = site(graph, node, weight, weight.codes.shape)
    if isinstance(place, str):
        return Reject(place)
    old = too_old(graph, "4-bit codes")
    if old:
        return Reject(old)
    (depth, width), block = weight.codes.shape, weight.block
    blocks, size = len(weight.absmax), depth * width
    codes = place.derived(
        "codes", weight.codes, partial(_rows, block=block), ml_dtypes.uint4, (blocks, block)
    )
    index = place.insert("Cast", codes, role="index", attributes={"to": 6})
    table = place.constant("table", weight.table)
    levels = place.insert("Gather", table, index, role="levels")
    absmax = place.constant("absmax", weight.absmax.reshape(-1, 1))
    rows = place.insert("Mul", levels, absmax, role="scaled")
    if blocks * block != size:
        flat = place.constant("flat", np.array([-1], np.int64))
        rows = place.insert("Reshape", rows, flat, role="flattened")
        ends = [place.constant(n, np.array([v], np.int64)) for n, v in (("from", 0), ("to", size))]
        rows = place.insert("Slice", rows, *ends, role="kept")
    shape = place.constant("shape", np.array([width, depth], np.int64))
    rows = place.insert("Reshape", rows, shape, role="rows")
    turned = place.insert("Transpose", rows, role="weight", attributes={"perm": [1, 0]})
    return place.product(place.typed(turned, "weight"))


def pack(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """Return uint8 [ceil(K * N / 2)] for codes [K, N], as MatMulBnb4 has them: high bits first."""
    flat = np.ascontiguousarray(codes.T).reshape(-1).astype(np.uint8)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    joined: NDArray[np.uint8] = (flat[0::2] << np.uint8(4)) | flat[1::2]
    return joined


def unpack(packed: NDArray[np.uint8], depth: int, width: int) -> NDArray[np.uint8]:
    """Return codes [K, N] of packed ones."""
    pairs = np.stack([packed >> np.uint8(4), packed & np.uint8(15)], axis=-1)
    return np.ascontiguousarray(pairs.reshape(-1)[: depth * width].reshape(width, depth).T)


def _rows(codes: NDArray[Any], block: int) -> NDArray[Any]:
    """Return codes block by block, uint4 [blocks, block]; code 0 fills the last one."""
    flat = np.ascontiguousarray(codes.T).reshape(-1)
    room = np.zeros(-flat.size % block, flat.dtype)
    return np.concatenate([flat, room]).astype(ml_dtypes.uint4).reshape(-1, block)
