"""MatMulBnb4 becomes a lookup in its table and a MatMul."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qgraph.graph import Graph, Node, Value
from qgraph.passes.rewrites._qdq import label
from qgraph.passes.weight_forms._site import MICROSOFT, too_old
from qgraph.passes.weight_forms.bnb4 import BLOCKS, TABLES, block_codebook, unpack
from qgraph.passes.weights.results import BlockCodebook
from qgraph.pattern import Match, Pattern, op, var
from qgraph.pipeline import Fusion, Reject


@dataclass(frozen=True)
class UnpackMatMulBnb4(Fusion):
    """Write onnxruntime's MatMulBnb4 in ONNX's own operators, for engines that lack it.

    Before:
        y = com.microsoft.MatMulBnb4 <K, N, block_size, quant_type> (x, packed, absmax)

    After:
        levels = Gather(table, Cast <to = int32> (codes))                       # [blocks, block]
        rows = Reshape(Mul(levels, absmax), [N, K])
        y = MatMul(x, Transpose(rows))

    When:
        Weight and absmax are constants, of float32 or float16; opset 21 or newer, where 4-bit
        types came.

    Leaves alone:
        transB = 0; sizes that contradict each other.

    Numerics:
        Exact: the weight that MatMulBnb4 computes with, rounded once where it is float16.

    Source:
        https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
    """

    name: ClassVar[str] = "unpack_matmul_bnb4"
    pattern: ClassVar[Pattern] = op.MatMulBnb4(
        var("x"), var("packed"), var("absmax"), bind="node", domain=MICROSOFT
    )

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Read the weight, and write it as `block_codebook` does."""
        node = m.node("node")
        found = read(graph, node)
        if isinstance(found, str):
            return Reject(found)
        old = too_old(graph, "4-bit codes")
        if old:
            return Reject(old)
        tensor = graph.tensor(m.value("absmax"))
        assert tensor is not None
        # The form puts its weight in the place of a MatMul's.
        stub = ir.Value(
            name=m.value("packed").name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(found.codes.shape),
        )
        product = graph.insert(
            "MatMul", [m.value("x"), stub], before=node, name=label(node), like=node.outputs[0]
        )
        out = block_codebook(graph, product, found)
        graph.remove(product)
        return out


def read(graph: Graph, node: Node) -> BlockCodebook | str:
    """Return the weight of a MatMulBnb4, or why it can't be read."""
    depth, width, block, kind, turned = (
        int(graph.attribute(node, name, default))
        for name, default in (
            ("K", 0),
            ("N", 0),
            ("block_size", 0),
            ("quant_type", -1),
            ("transB", 1),
        )
    )
    if kind not in TABLES or block not in BLOCKS or depth < 1 or width < 1:
        return f"K = {depth}, N = {width}, block_size = {block}, quant_type = {kind} is no weight"
    if not turned:
        return "its weight is not transposed (transB = 0)"
    packed, absmax = graph.array(node.inputs[1]), graph.array(node.inputs[2])
    if packed is None or absmax is None:
        return "its weight or absmax is computed"
    size = depth * width
    if packed.dtype != np.uint8 or packed.size != -(-size // 2):
        return f"its weight has {packed.size} bytes of {packed.dtype}, not {-(-size // 2)} of uint8"
    if absmax.size != -(-size // block) or absmax.dtype not in (np.float32, np.float16):
        return f"its absmax has {absmax.size} numbers of {absmax.dtype}, not {-(-size // block)}"
    codes = unpack(packed.reshape(-1), depth, width)
    return BlockCodebook(codes, absmax.reshape(-1).astype(np.float32), TABLES[kind], block)
