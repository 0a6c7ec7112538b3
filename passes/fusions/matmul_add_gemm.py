"""MatMul + bias becomes one Gemm where the rank allows."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph.graph import Graph, Node, Value
from qgraph.passes.fusions._affine import along
from qgraph.passes.fusions._constants import constant, folded, standing_in
from qgraph.pattern import Match, Pattern, const, maybe, one_of, op, var
from qgraph.pipeline import Fusion, Reject


@dataclass(frozen=True)
class MatMulAddGemm(Fusion):
    """Make one Gemm of a MatMul by a constant weight and the Add of a constant bias.

    Before:
        y = MatMul(x, weight)
        z = Add(y, bias)

    After:
        z = Gemm(x, weight, bias)

    When:
        x has two axes, the weight is a constant [K, N], the bias a constant of one element or
        one value a column. A Gemm without bias takes the Add in the same way.

    Leaves alone:
        More axes or an unknown number of them: Gemm takes exactly two, and a Reshape on both
        sides would cost more than it saves, so MatMul and Add stay and are marked as one linear
        unit later. Computed weights; a bias that varies along rows or would make the result
        larger; a MatMul with a second reader; a Gemm with beta other than 1.

    Numerics:
        Exact up to the order of summation.

    Source:
        https://onnx.ai/onnx/operators/onnx__Gemm.html and onnx__MatMul.html beside it.
    """

    name: ClassVar[str] = "matmul_add_gemm"
    pattern: ClassVar[Pattern] = op.Add(
        const("bias"),
        one_of(
            op.MatMul(var("x"), var("weight"), bind="product"),
            op.Gemm(var("x"), var("weight"), maybe("no_bias"), bind="product"),
        ),
    )

    def applies(self, graph: Graph, m: Match) -> bool:
        """Only with a constant weight, and where the Gemm has no bias yet."""
        return "no_bias" not in m and constant(graph, m.value("weight")) is not None

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Add the bias to the Gemm, which replaces the MatMul."""
        product = m.node("product")
        is_gemm = product.op_type == "Gemm"
        weight, bias = constant(graph, m.value("weight")), constant(graph, m.value("bias"))
        if weight is None or bias is None or weight.ndim != 2:
            return Reject("the weight is not a matrix, or the bias not of a floating-point type")
        columns = weight.shape[0 if graph.attribute(product, "transB", 0) else 1]
        values = along(bias, -1, columns, 2)
        if values is None:
            return Reject("the constant is not one element or one value a column")
        rank = 2 if is_gemm else _rank(graph, product, m.root)
        if rank != 2:
            known = "an unknown number of" if rank is None else rank
            return Reject(f"the input has {known} axes, Gemm takes 2: left as one linear unit")
        vector = m.value("bias")
        if bias.shape != (columns,):
            vector = folded(graph, vector, values.astype(bias.dtype))
        if is_gemm:
            graph.set_input(product, 2, vector)
            return standing_in(product.outputs[0], m.root)
        matrix = m.value("weight")
        if not graph.is_constant(matrix):
            matrix = folded(graph, matrix, weight)
        gemm = graph.insert(
            "Gemm", [m.value("x"), matrix, vector], before=product, name=product.name
        )
        return standing_in(gemm.outputs[0], m.root)


def _rank(graph: Graph, product: Node, add: Node) -> int | None:
    """Rank of the MatMul's left operand, which a matrix on the right keeps; None if unknown."""
    for value in (product.inputs[0], product.outputs[0], add.outputs[0]):
        rank = graph.rank(value)
        if rank is not None:
            return rank
    return None
