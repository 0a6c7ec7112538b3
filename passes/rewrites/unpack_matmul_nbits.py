"""MatMulNBits becomes a blocked DequantizeLinear and a MatMul."""

from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.passes.rewrites._qdq import label
from qgraph.passes.weight_forms import _nbits as nbits
from qgraph.passes.weight_forms._site import MICROSOFT, TWO_BITS_SINCE, too_old
from qgraph.passes.weight_forms.dequantize import TWO_BIT_COLUMNS
from qgraph.pattern import Match, Pattern, maybe, op, var
from qgraph.pipeline import Fusion, Reject

_UNSIGNED: dict[int, Any] = {2: ml_dtypes.uint2, 4: ml_dtypes.uint4, 8: np.uint8}
_SIGNED: dict[int, Any] = {2: ml_dtypes.int2, 4: ml_dtypes.int4, 8: np.int8}


@dataclass(frozen=True)
class UnpackMatMulNBits(Fusion):
    """Write onnxruntime's MatMulNBits as ONNX writes it: DequantizeLinear with blocks, MatMul.

    Before:
        y = com.microsoft.MatMulNBits <K, N, bits, block_size>(x, packed, scales, zero_points)

    After:
        w = DequantizeLinear <axis = 0, block_size>(codes, scale, zero_point)   # [K, N]
        y = MatMul(x, w)

        The zero point is left out where all are the middle code: then the codes are signed
        (int4, int8). Otherwise they are unsigned. Codes of 2 bits are held
        in 4 before opset 25, and where N is no multiple of 4 (see `dequantize_linear`). A bias
        becomes an Add.

    When:
        2, 4 or 8 bits; weight, scales and zero points are constants; opset 21 or newer, where blocks
        came to DequantizeLinear.

    Leaves alone:
        Weights with a group index (g_idx), whose blocks are no neighbours; prepacked weights; zero
        points that are fractions; sizes that contradict each other.

    Numerics:
        Exact: w is bit for bit the weight that MatMulNBits computes with. Where `accuracy_level`
        is 4, MatMulNBits rounds the activations to int8, which the MatMul does not.

    Source:
        https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md and
        https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html.
    """

    name: ClassVar[str] = "unpack_matmul_nbits"
    pattern: ClassVar[Pattern] = op.MatMulNBits(
        var("x"),
        var("packed"),
        var("scales"),
        maybe("zero_points"),
        maybe("group_index"),
        maybe("bias"),
        bind="node",
        domain=MICROSOFT,
    )

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Unpack the weight and put the two nodes in place of the one."""
        old = too_old(graph, "blocks")
        if old:
            return Reject(old)
        if "group_index" in m:
            return Reject("its weight has a group index (g_idx), so blocks are no neighbours")
        weight = read(graph, m.node("node"))
        if isinstance(weight, str):
            return Reject(weight)
        return _write(graph, m.node("node"), weight, m.value("bias") if "bias" in m else None)


@dataclass(frozen=True, eq=False)
class Weight:
    """A blocked weight.

    Attributes:
        codes: Integer codes [K, N].
        scale: [blocks, N].
        zero_point: [blocks, N], or None for signed codes.
        block: Codes in a block.
    """

    codes: NDArray[Any]
    scale: NDArray[Any]
    zero_point: NDArray[Any] | None
    block: int


def read(graph: Graph, node: Node) -> Weight | str:
    """Return the weight of a MatMulNBits, or why it can't be unpacked."""
    depth, width, bits, block = (
        int(graph.attribute(node, name, default))
        for name, default in (("K", 0), ("N", 0), ("bits", 4), ("block_size", 0))
    )
    if bits not in _UNSIGNED:
        return f"its weight has {bits} bits"
    if graph.attribute(node, "weight_prepacked", 0):
        return "its weight is prepacked for one machine"
    if depth < 1 or width < 1 or block < 16 or block & (block - 1):
        return f"K = {depth}, N = {width}, block_size = {block} is no valid size"
    packed, scales = graph.array(node.inputs[1]), graph.array(node.inputs[2])
    if packed is None or scales is None:
        return "its weight or scales are computed"
    blocks = -(-depth // block)
    wanted = width, blocks, nbits.block_bytes(bits, block)
    if packed.dtype != np.uint8 or packed.size != np.prod(wanted, dtype=np.int64):
        return f"its weight has {packed.size} bytes of {packed.dtype}, not {list(wanted)} of uint8"
    if scales.size != width * blocks:
        return f"it has {scales.size} scales, not {width * blocks}"
    middle = 1 << (bits - 1)
    zero = _zero_points(graph, node, bits, blocks, width)
    if isinstance(zero, str):
        return zero
    codes = nbits.unpack_codes(packed.reshape(wanted), bits, depth)
    scale = nbits.by_block(scales, blocks, width)
    if bits == 2 and (graph.opset < TWO_BITS_SINCE or width % TWO_BIT_COLUMNS):
        bits = 4
    if zero is None or (zero == middle).all():
        signed = (codes.astype(np.int16) - middle).astype(np.int8).astype(_SIGNED[bits])
        return Weight(signed, scale, None, block)
    return Weight(codes.astype(_UNSIGNED[bits]), scale, zero.astype(_UNSIGNED[bits]), block)


def _zero_points(
    graph: Graph, node: Node, bits: int, blocks: int, width: int
) -> NDArray[np.uint8] | None | str:
    value = node.inputs[3] if len(node.inputs) > 3 else None
    if value is None:
        return None
    array = graph.array(value)
    if array is None:
        return "its zero points are computed"
    if array.dtype == np.uint8:
        wanted = nbits.zero_point_bytes(bits, blocks, width)
        if array.size != wanted:
            return f"its zero points have {array.size} bytes, not {wanted}"
        return nbits.unpack_zero_points(array, bits, blocks, width)
    if array.size != width * blocks:
        return f"it has {array.size} zero points, not {width * blocks}"
    values = nbits.by_block(array, blocks, width).astype(np.float64)
    whole = np.isfinite(values) & (values == np.rint(values))
    if not (whole & (values >= 0) & (values < 1 << bits)).all():
        return "a zero point is no code: a fraction, or outside of the codes"
    return values.astype(np.uint8)


def _write(graph: Graph, node: Node, weight: Weight, bias: Value | None) -> Value:
    name = node.inputs[1].name if node.inputs[1] is not None else "weight"
    inputs = [
        graph.constant(f"{name}_codes", weight.codes),
        graph.constant(f"{name}_scale", weight.scale),
    ]
    if weight.zero_point is not None:
        inputs.append(graph.constant(f"{name}_zero_point", weight.zero_point))
    dequantize = graph.insert(
        "DequantizeLinear",
        inputs,
        before=node,
        attributes={"axis": 0, "block_size": weight.block},
        name=f"{label(node)}_weight",
    )
    floats = dequantize.outputs[0]
    floats.type, floats.shape = inputs[1].type, ir.Shape(weight.codes.shape)
    out = graph.insert(
        "MatMul", [node.inputs[0], floats], before=node, name=label(node), like=node.outputs[0]
    ).outputs[0]
    if bias is None:
        return out
    return graph.insert(
        "Add", [out, bias], before=node, name=f"{label(node)}_bias", like=node.outputs[0]
    ).outputs[0]
