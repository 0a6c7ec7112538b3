"""A blocked DequantizeLinear and a MatMul become MatMulNBits."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.passes.rewrites import _nbits as nbits
from qgraph.passes.rewrites._qdq import Parameters, label, parameters
from qgraph.passes.rewrites.unpack_matmul_nbits import MICROSOFT
from qgraph.pattern import Match, Pattern, const, maybe, op, var
from qgraph.pipeline import Fusion, Reject

_BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8}


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
        Constant codes [K, N] of 4 or 8 bits with blocks along K, a power of two of at least 16
        long; x is no constant.

    Leaves alone:
        Weights that something else reads too; scales that are not float32 or float16; x of one
        axis; a weight that comes first.

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
        reason = _refusal(found, tuple(tensor.shape.numpy()), graph.rank(m.value("x")))
        if reason is not None:
            return Reject(reason)
        if graph.is_constant(m.value("x")):
            return Reject("both operands are constants")
        return self._write(graph, m.node("matmul"), m.value("x"), tensor.numpy(), found)

    def _write(
        self, graph: Graph, node: Node, x: Value, codes: NDArray[Any], found: Parameters
    ) -> Value:
        bits, (depth, width) = _BITS[found.dtype], codes.shape
        middle = 1 << (bits - 1)
        shift = middle if found.dtype.startswith("int") else 0
        unsigned = (codes.astype(np.int16) + shift).astype(np.uint8)
        zero = (found.zero_point + shift).astype(np.uint8)
        packed = nbits.pack_codes(unsigned, bits, found.block, zero)
        name = label(node)
        inputs = [
            x,
            graph.constant(f"{name}_packed", packed),
            graph.constant(f"{name}_scales", np.ascontiguousarray(found.scale.T)),
        ]
        if (zero != middle).any():
            points = nbits.pack_zero_points(zero, bits)
            inputs.append(graph.constant(f"{name}_zero_points", points))
        attributes = {"K": depth, "N": width, "bits": bits, "block_size": found.block}
        if self.accuracy_level:
            attributes["accuracy_level"] = self.accuracy_level
        made = graph.insert(
            "MatMulNBits",
            inputs,
            before=node,
            attributes=attributes,
            name=name,
            domain=MICROSOFT,
            like=node.outputs[0],
        )
        return made.outputs[0]


def _refusal(found: Parameters, shape: tuple[int, ...], rank: int | None) -> str | None:
    if found.dtype not in _BITS:
        return f"its codes are {found.dtype}"
    if len(shape) != 2 or found.axis not in (0, -2):
        return "its blocks do not lie along the first of two axes"
    if found.block < 16 or found.block & (found.block - 1):
        return f"blocks of {found.block} are no power of two of at least 16"
    if found.scale.dtype not in (np.float32, np.float16):
        return f"its scales are {found.scale.dtype}"
    if found.scale.shape != (-(-shape[0] // found.block), shape[1]):
        return "its scales do not fit its shape"
    if rank == 1:
        return "x has one axis"
    return None
