"""A constant scalar Mul or Div in front of a linear layer folds into its weight."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph.graph import Graph, Value
from qgraph.passes.fusions._affine import LOSSY, along, arithmetic
from qgraph.passes.fusions._constants import constant, folded, scaled
from qgraph.pattern import Match, Pattern, activation, const, maybe, one_of, op, var
from qgraph.pipeline import Fusion, Reject


@dataclass(frozen=True)
class ScaleMatMul(Fusion):
    """Fold a constant scalar Mul or Div into the weight of the linear layer behind it.

    Before:
        y = Mul(x, operand)
        z = MatMul(y, weight)

    After:
        z = MatMul(x, weight * operand)

    When:
        MatMul or Gemm by a constant weight, and an operand of one element.

        It must run behind the fusions of Gelu, HardSwish and the like, whose decomposed forms may
        end in such a Mul or Div.

    Leaves alone:
        An operand of more elements: one value a feature is the end of a normalization, which
        engines have kernels for; `operand / x`; division by zero; an operand with more axes than
        x, or more than one where x's rank is unknown; computed weights; a second reader; folded
        weights that overflow or underflow their type.

    Numerics:
        Exact up to rounding: computed in float64, rounded once to the weight's type.

    Source:
        https://onnx.ai/onnx/operators/onnx__MatMul.html: linear in both operands.
    """

    name: ClassVar[str] = "scale_matmul"
    pattern: ClassVar[Pattern] = op.any_of("MatMul", "Gemm")(
        one_of(
            op.Mul(const("operand"), activation("x"), bind="scale"),
            op.Div(activation("x"), const("operand"), bind="scale"),
        ),
        var("weight"),
        maybe("bias"),
    )

    def applies(self, graph: Graph, m: Match) -> bool:
        """Only a scalar on a linear layer: the rest belongs to other operators."""
        operand = graph.tensor(m.value("operand"))
        is_scalar = operand is not None and operand.size == 1
        return is_scalar and constant(graph, m.value("weight")) is not None

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Scale the weight in place."""
        weight, operand = constant(graph, m.value("weight")), constant(graph, m.value("operand"))
        values = None if operand is None else along(operand, -1, 1, graph.rank(m.value("x")))
        if values is None or weight is None:
            return Reject("the constant may add axes to the result")
        affine = arithmetic(m.node("scale").op_type, values)
        if isinstance(affine, Reject):
            return affine
        new = scaled(weight, affine.factor.reshape([1] * weight.ndim))
        if new is None:
            return Reject(LOSSY.format(weight.dtype))
        graph.set_input(m.root, 0, m.value("x"))
        graph.set_input(m.root, 1, folded(graph, m.value("weight"), new))
        return None
