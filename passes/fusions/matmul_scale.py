"""A constant Mul or Div behind a linear layer folds into it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qgraph.graph import Graph, Value
from qgraph.passes.fusions._affine import LOSSY, along, arithmetic, fold_into_linear
from qgraph.passes.fusions._constants import constant, folded, rounded, standing_in
from qgraph.pattern import Match, Pattern, const, maybe, one_of, op, var
from qgraph.pipeline import Fusion, Reject

_LINEAR = op.any_of("MatMul", "Gemm")(var("x"), var("weight"), maybe("bias"), bind="linear")
_SUM = one_of(_LINEAR, op.Add(const("addend"), _LINEAR, bind="add"))


@dataclass(frozen=True)
class MatMulScale(Fusion):
    """Fold a constant Mul or Div into the weight and bias of the linear layer before it.

    Before:
        y = MatMul(x, weight)
        b = Add(y, bias)
        z = Mul(b, operand)

    After:
        y = MatMul(x, weight * operand)
        z = Add(y, bias * operand)

    When:
        MatMul or Gemm by a constant matrix, with or without a constant Add behind it, and an
        operand of one element or one value a column. A weight with other readers is copied.

    Leaves alone:
        `operand / y`; division by zero; an operand that varies along other axes, that would make
        the result larger, or has more than one axis where the rank is unknown; computed weights;
        a second reader; folded weights that overflow or underflow their type.

    Numerics:
        Exact up to rounding: computed in float64, rounded once to the weight's type.

    Source:
        https://onnx.ai/onnx/operators/onnx__MatMul.html (linear in the weight) and
        https://onnx.ai/onnx/repo-docs/Broadcasting.html
    """

    name: ClassVar[str] = "matmul_scale"
    pattern: ClassVar[Pattern] = one_of(
        op.Mul(const("operand"), _SUM), op.Div(_SUM, const("operand"))
    )

    def applies(self, graph: Graph, m: Match) -> bool:
        """Only with a constant weight: two activations multiplied are no linear layer."""
        return constant(graph, m.value("weight")) is not None

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Scale the constants in place."""
        linear = m.node("linear")
        weight, operand = constant(graph, m.value("weight")), constant(graph, m.value("operand"))
        if weight is None or operand is None or weight.ndim != 2:
            return Reject("the weight is not a matrix, or the constant of another type")
        columns = weight.shape[0 if graph.attribute(linear, "transB", 0) else 1]
        rank = 2 if linear.op_type == "Gemm" else graph.rank(m.value("x"))
        values = along(operand, -1, columns, rank)
        if values is None:
            return Reject("the constant is not one element or one value a column")
        affine = arithmetic(m.root.op_type, values)
        if isinstance(affine, Reject):
            return affine
        fold = fold_into_linear(graph, linear, weight, affine)
        if isinstance(fold, Reject):
            return fold
        if "add" not in m:
            fold.put(graph, linear)
            return standing_in(linear.outputs[0], m.root)
        addend = constant(graph, m.value("addend"))
        if addend is None:
            return Reject("the constant behind the product is of another type")
        factor = affine.factor[0] if operand.size == 1 else affine.factor
        new = rounded(np.asarray(addend.astype(np.float64) * factor), addend.dtype)
        if new is None:
            return Reject(LOSSY.format(addend.dtype))
        fold.put(graph, linear)
        add = m.node("add")
        index = 1 if add.inputs[1] is m.value("addend") else 0
        graph.set_input(add, index, folded(graph, m.value("addend"), new))
        return standing_in(add.outputs[0], m.root)
