"""Gemm's alpha and beta fold into its constants."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qgraph.graph import Graph, Value
from qgraph.passes.fusions._affine import LOSSY
from qgraph.passes.fusions._constants import constant, folded, rounded, scaled
from qgraph.pattern import Match, Pattern, maybe, op, var
from qgraph.pipeline import Fusion, Reject


@dataclass(frozen=True)
class GemmFactors(Fusion):
    """Fold Gemm's alpha into its weight and beta into its bias, so that both are 1.

    Before:
        y = Gemm <alpha, beta> (x, weight, bias)

    After:
        y = Gemm (x, weight * alpha, bias * beta)

    When:
        alpha is not 1 and the weight (either operand) is a constant; beta is not 1 and the bias
        is a constant or absent. One may go without the other. With beta = 0 the bias goes.

    Leaves alone:
        A factor on a computed weight or bias; folded values that overflow or underflow their
        type. transA and transB stay as they are.

    Numerics:
        Exact up to rounding: computed in float64, rounded once to the constant's type.

    Source:
        https://onnx.ai/onnx/operators/onnx__Gemm.html
    """

    name: ClassVar[str] = "gemm_factors"
    pattern: ClassVar[Pattern] = op.Gemm(var("a"), var("b"), maybe("bias"))

    def applies(self, graph: Graph, m: Match) -> bool:
        """Only where a factor is not 1."""
        return any(graph.attribute(m.root, name, 1.0) != 1.0 for name in ("alpha", "beta"))

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Fold what can be folded."""
        reasons = [self._fold_alpha(graph, m), self._fold_beta(graph, m)]
        refused = [reason for reason in reasons if reason]
        if len(refused) == sum(reason is not None for reason in reasons):
            return Reject("; ".join(refused))
        return None

    @staticmethod
    def _fold_alpha(graph: Graph, m: Match) -> str | None:
        """Return why alpha stays, "" if it was folded, None if it is 1."""
        alpha = float(graph.attribute(m.root, "alpha", 1.0))
        if alpha == 1.0:
            return None
        index = 1 if graph.is_constant(m.value("b")) or not graph.is_constant(m.value("a")) else 0
        old = m.root.inputs[index]
        weight = constant(graph, old)
        if weight is None or old is None:
            return "alpha is not 1, and the weight is not a constant"
        new = scaled(weight, np.full((1, 1), alpha))
        if new is None:
            return LOSSY.format(weight.dtype)
        graph.set_input(m.root, index, folded(graph, old, new))
        graph.set_attribute(m.root, "alpha", None)
        return ""

    @staticmethod
    def _fold_beta(graph: Graph, m: Match) -> str | None:
        """Return why beta stays, "" if it was folded, None if it is 1."""
        beta = float(graph.attribute(m.root, "beta", 1.0))
        if beta == 1.0:
            return None
        old = m.values.get("bias")
        if beta == 0 or old is None:
            graph.set_input(m.root, 2, None)
            graph.set_attribute(m.root, "beta", None)
            return ""
        bias = constant(graph, old)
        new = None if bias is None else rounded(bias.astype(np.float64) * beta, bias.dtype)
        if new is None:
            return "beta is not 1, and the bias is not a constant that can take it"
        graph.set_input(m.root, 2, folded(graph, old, new))
        graph.set_attribute(m.root, "beta", None)
        return ""
