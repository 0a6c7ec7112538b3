"""Embedding tables in integers: onnxruntime's GatherBlockQuantized, or Gathers and DequantizeLinear."""

from functools import partial
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.encoding import INTEGERS
from qgraph.facts import QuantizedWeight
from qgraph.graph import Graph, Node, Value
from qgraph.passes.weight_forms._site import MICROSOFT, Site, in_type, too_old
from qgraph.passes.weight_forms.dequantize import CONTAINERS
from qgraph.passes.weight_forms.matmul_nbits import SMALLEST_BLOCK
from qgraph.pipeline import Reject


def gather_table(
    graph: Graph,
    node: Node,
    table: QuantizedWeight,
    *,
    kernel: Literal["block", "plain"] = "block",
) -> Value | Reject:
    """Write the table of a Gather in integers, with a scale a row or blocks along the rows.

    Before:
        y = Gather(table, indices)                                              # table [V, H]

    After, with kernel = block:
        y = com.microsoft.GatherBlockQuantized <bits, block_size, quantize_axis = 1>
            (codes, indices, scale, zero_point)

    After, with kernel = plain:
        y = DequantizeLinear <axis = -1, block_size> (Gather(codes, indices), Gather(scale, indices))

        Gathers of 4-bit codes have no kernel in onnxruntime: `plain` takes 8 bits alone.

    Args:
        graph: Graph to add to; `node` stays.
        node: A Gather of rows.
        table: Codes [V, H] of up to 8 bits; 2 and 3 are held in 4. Tables that several Gathers read
            are stored once if they are given the same object.
        kernel: Which operators. GatherBlockQuantized, in onnxruntime 1.32, gives rows of zeros
            for indices out of range, where Gather fails.

    Returns:
        The value that replaces the Gather's, or why there is none.

    Source:
        https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
    """
    place = _site(graph, node, table)
    if isinstance(place, str):
        return Reject(place)
    dtype = CONTAINERS.get(table.encoding.dtype, table.encoding.dtype)
    if dtype not in ("int4", "uint4", "int8", "uint8"):
        return Reject(f"its codes are {dtype}")
    old = too_old(graph, "blocks")
    if old:
        return Reject(old)
    found = _by_row(table)
    if isinstance(found, str):
        return Reject(found)
    block, floats, zero = found
    scale = in_type(floats, place.float_type)
    if isinstance(scale, str):
        return Reject(scale)
    if kernel == "block":
        return _block_quantized(place, table.codes, dtype, block, scale, zero)
    if dtype.endswith("4"):
        return Reject("onnxruntime has no Gather of 4-bit codes")
    kind = INTEGERS[dtype][2]
    codes = place.derived("codes", table.codes, _same, kind, table.codes.shape)
    parts = [codes, place.constant("scale", scale)]
    if zero.any():
        parts.append(place.constant("zero_point", zero.astype(kind)))
    return gather_dequantize(graph, node, parts, block)


def gather_dequantize(graph: Graph, node: Node, parts: list[Value], block: int) -> Value:
    """Gather rows of codes and of what goes with them, and dequantize.

    Args:
        graph: Graph to add to; `node` stays.
        node: A Gather of rows.
        parts: Codes [V, H], scale [V, blocks] and, if there is one, zero point [V, blocks].
        block: Codes of a row that share a scale.
    """
    gathered = []
    for label, constant in zip(("codes", "scale", "zero_point"), parts, strict=False):
        part = graph.insert(
            "Gather", [constant, node.inputs[1]], before=node, name=f"{node.name}_{label}"
        )
        part.outputs[0].type = constant.type
        gathered.append(part.outputs[0])
    return graph.insert(
        "DequantizeLinear",
        gathered,
        before=node,
        attributes={"axis": -1, "block_size": block},
        name=f"{node.name}_dq",
        like=node.outputs[0],
    ).outputs[0]


def gather_plain(graph: Graph, node: Node, table: QuantizedWeight) -> Value | Reject:
    """Write the table of a Gather in integers, in operators of the ONNX standard.

    Before:
        y = Gather(table, indices)                                              # table [V, H]

    After:
        y = DequantizeLinear <axis = -1, block_size> (Gather(codes, indices), Gather(scale, indices))

    Args:
        graph: Graph to add to; `node` stays.
        node: A Gather of rows.
        table: As `gather_table` takes it, of 8 bits.

    Returns:
        The value that replaces the Gather's, or why there is none.
    """
    return gather_table(graph, node, table, kernel="plain")


def gather_product(graph: Graph, node: Node, product: Node) -> Value | Reject:
    """Gather rows of the codes that a MatMulNBits multiplies by: nothing is stored twice.

    Before:
        y = Gather(table, indices)
        z = com.microsoft.MatMulNBits (x, codes, scale, zero_point)     # codes [V, blocks, bytes]

    After:
        y = com.microsoft.GatherBlockQuantized (Reshape(codes, [V, -1]), indices, scale, zero_point)

    Args:
        graph: Graph to add to; `node` stays.
        node: A Gather of rows of the table whose transpose, quantized, is the product's weight.
        product: The MatMulNBits.

    Returns:
        The value that replaces the Gather's, or why there is none.
    """
    if product.op_type != "MatMulNBits":
        return Reject(f"{product.op_type} holds no blocks of codes")
    depth, block, bits = (graph.attribute(product, name) for name in ("K", "block_size", "bits"))
    if depth % block:
        return Reject(f"rows of {depth} do not divide into whole blocks of {block}")
    codes, scale, *rest = product.inputs[1:]
    zero = rest[0] if rest else None
    if bits not in (4, 8) or (zero is not None and zero.dtype != ir.DataType.UINT8):
        return Reject("there is no Gather of such codes")
    shape = graph.constant(f"{node.name}_rows", np.array([graph.attribute(product, "N"), -1]))
    rows = graph.insert("Reshape", [codes, shape], before=node, name=f"{node.name}_codes")
    inputs = [rows.outputs[0], node.inputs[1], scale, *([] if zero is None else [zero])]
    return graph.insert(
        "GatherBlockQuantized",
        inputs,
        before=node,
        attributes={"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1},
        name=f"{node.name}_gather",
        domain=MICROSOFT,
        like=node.outputs[0],
    ).outputs[0]


def _site(graph: Graph, node: Node, table: QuantizedWeight) -> Site | str:
    rows = node.inputs[1]
    if not graph.is_standard(node, "Gather") or node.inputs[0] is None or rows is None:
        return f"{node.op_type} is no Gather"
    if graph.attribute(node, "axis", 0) not in (0, -2) or table.codes.ndim != 2:
        return "it does not gather rows of a table"
    known = graph.shape(node.inputs[0])
    if known is not None and known != table.codes.shape:
        return f"its table is {list(known)}, the result {list(table.codes.shape)}"
    dtype = node.inputs[0].dtype or ir.DataType.FLOAT
    if dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"its table is {dtype.name.lower()}, not float32 or float16"
    name = node.inputs[0].name or "table"
    return Site(graph, node, table, rows, name, dtype, table.codes.shape)


def _by_row(table: QuantizedWeight) -> tuple[int, NDArray[np.float32], NDArray[np.int64]] | str:
    """Return block length along a row, scale and zero point [V, blocks]; or why there are none."""
    encoding, (rows, width) = table.encoding, table.codes.shape
    lengths = encoding.block or (0, 0)
    block = lengths[1] or max(width, 1)
    wanted = (rows, -(-width // block))
    shape = encoding.scale.shape or (1, 1)
    if lengths[0] > 1 or any(n not in (1, want) for n, want in zip(shape, wanted, strict=True)):
        return f"its blocks {list(lengths)} do not lie along the rows"
    scale, zero = encoding.scale.reshape(shape), encoding.zero_point.reshape(shape)
    return block, np.broadcast_to(scale, wanted).copy(), np.broadcast_to(zero, wanted).copy()


def _block_quantized(
    place: Site,
    codes: NDArray[Any],
    dtype: str,
    block: int,
    scale: NDArray[Any],
    zero: NDArray[np.int64],
) -> Value | Reject:
    """Add GatherBlockQuantized, whose blocks are powers of two of at least 16."""
    width = codes.shape[1]
    if block >= width:
        length = max(SMALLEST_BLOCK, 1 << (width - 1).bit_length())
    else:
        length = block & -block
        if length < SMALLEST_BLOCK:
            return Reject(f"blocks of {block} are no multiple of {SMALLEST_BLOCK}")
    starts = np.arange(0, width, length) // block
    scale, zero = scale[:, starts], zero[:, starts]
    # There is no kernel for int8; uint8's zero point is 128 unless another is given.
    bits, shift = int(dtype[-1]), 128 if dtype == "int8" else 0
    kind = np.dtype(np.uint8) if bits == 8 else INTEGERS[dtype][2]
    inputs = [
        place.derived(
            "block_codes",
            codes,
            partial(_shifted, shift=shift, dtype=kind),
            kind,
            codes.shape,
        ),
        place.x,
        place.constant("block_scale", scale),
    ]
    points = zero + shift
    if (points != (128 if bits == 8 else 0)).any():
        inputs.append(place.constant("block_zero_point", points.astype(kind)))
    return place.insert(
        "GatherBlockQuantized",
        *inputs,
        role="gather",
        attributes={"bits": bits, "block_size": length, "gather_axis": 0, "quantize_axis": 1},
        domain=MICROSOFT,
        like=place.node.outputs[0],
    )


def _same(codes: NDArray[Any]) -> NDArray[Any]:
    return codes


def _shifted(codes: NDArray[Any], shift: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    return (codes.astype(np.int16) + shift).astype(dtype)
