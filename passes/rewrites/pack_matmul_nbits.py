"""A blocked DequantizeLinear and a MatMul become MatMulNBits."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qgraph.graph import Graph, Value
from qgraph.passes.rewrites._qdq import Parameters, label, parameters
from qgraph.passes.weight_forms._site import Site
from qgraph.passes.weight_forms.matmul_nbits import Blocks, fit, write
from qgraph.pattern import Match, Pattern, const, maybe, op, var
from qgraph.pipeline import Fusion, Reject

_BITS = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8}


@dataclass(frozen=True)
class PackMatMulNBits(Fusion):
    """Write a MatMul whose weight is dequantized by blocks as onnxruntime's MatMulNBits.

    Before:
        w = DequantizeLinear <axis = 0, block_size>(codes, scale, zero_point)   # [K, N]
        y = MatMul(x, w)

    After:
        y = com.microsoft.MatMulNBits <K, N, bits, block_size>(x, packed, scales, zero_points)

        Zero points are left out where all are the middle code, which is what signed codes have.

    When:
        Constant codes [K, N] of 2, 4 or 8 bits with blocks along K; x is no constant. Blocks whose
        length is no power of two, or with 2 bits more than 256, become several shorter ones.

    Leaves alone:
        Weights that something else reads too; scales that are not float32 or float16; blocks that
        are no multiple of 16; x of one axis; a weight that comes first.

    Numerics:
        Exact: the same weight, bit for bit, with `accuracy_level` 0 or 1. With 4, onnxruntime
        rounds the activations to int8.

    Source:
        https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md. onnxruntime
        does it itself where the DequantizeLinear has one reader and no QuantizeLinear follows.

    Attributes:
        accuracy_level: How MatMulNBits computes: 0 as it likes, 1 in float32, 4 with int8
            activations.
    """

    accuracy_level: Literal[0, 1, 2, 3, 4] = 0

    name: ClassVar[str] = "pack_matmul_nbits"
    pattern: ClassVar[Pattern] = op.MatMul(
        var("x"),
        op.DequantizeLinear(const("codes"), const("scale"), maybe("zero_point"), bind="dq"),
        bind="matmul",
    )

    def applies(self, graph: Graph, m: Match) -> bool:
        """Only weights with blocks are its business."""
        return bool(graph.attribute(m.node("dq"), "block_size", 0))

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Pack the weight and put the one node in place of the two."""
        found = parameters(graph, m.node("dq"))
        if isinstance(found, str):
            return Reject(found)
        tensor = graph.tensor(m.value("codes"))
        assert tensor is not None
        reason = _refusal(found, tuple(tensor.shape.numpy()))
        if reason is not None:
            return Reject(reason)
        if graph.is_constant(m.value("x")):
            return Reject("both operands are constants")
        bits, node = _BITS[found.dtype], m.node("matmul")
        blocks = Blocks(
            tensor.numpy(),
            1 << (bits - 1) if found.dtype.startswith("int") else 0,
            bits,
            found.block,
            found.scale,
            found.zero_point,
        )
        fitted = fit(blocks)
        if isinstance(fitted, str):
            return Reject(fitted)
        dtype = ir.DataType.from_numpy(found.scale.dtype)
        shape = tuple(tensor.shape.numpy())
        place = Site(graph, node, blocks, m.value("x"), label(node), dtype, shape)
        return write(place, fitted, self.accuracy_level)


def _refusal(found: Parameters, shape: tuple[int, ...]) -> str | None:
    if found.dtype not in _BITS:
        return f"its codes are {found.dtype}"
    if len(shape) != 2 or found.axis not in (0, -2):
        return "its blocks do not lie along the first of two axes"
    if found.scale.dtype not in (np.float32, np.float16):
        return f"its scales are {found.scale.dtype}"
    if found.scale.shape != (-(-shape[0] // found.block), shape[1]):
        return "its scales do not fit its shape"
    return None
