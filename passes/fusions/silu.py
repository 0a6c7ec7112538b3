"""Swish (SiLU) from a Sigmoid and a Mul."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph.graph import Graph, Value
from qgraph.passes.fusions._elementwise import (
    BFLOAT16,
    DOUBLE,
    FLOAT,
    FLOAT16,
    refusal,
    write,
)
from qgraph.pattern import Match, Pattern, const, one_of, op, var
from qgraph.pipeline import Fusion, Reject

SINCE = {FLOAT: 24, FLOAT16: 24, DOUBLE: 24, BFLOAT16: 24}
# The slope at which x * sigmoid(slope * x) is nearest to Gelu.
GELU_SLOPE = 1.702

_x = var("x")


@dataclass(frozen=True)
class Silu(Fusion):
    """Swish from x * sigmoid(alpha * x), with SiLU as its case of alpha 1.

    Before:
        s = Sigmoid(x)
        y = Mul(x, s)

    After:
        y = Swish(x)

    With a = Mul(x, 1.702) or a = Div(x, 0.5875) before the Sigmoid: Swish<alpha = 1.702>. That one
    is the sigmoid approximation of Gelu; it never becomes Gelu, which is another function.

    When:
        The opset is one of `opsets`; alpha is a one-element constant.

    Leaves alone:
        Opsets before 24, which have no Swish, and opsets after it: onnxruntime 1.31 has no kernel
        and expands Swish at opset 24 only (at 25 and 26 the model does not load). A Sigmoid that
        is read elsewhere.

    Numerics:
        Exact up to rounding.

    Source:
        https://onnx.ai/onnx/operators/onnx__Swish.html; Ramachandran, Zoph and Le, Searching for
        Activation Functions, 2017; Hendrycks and Gimpel, 2016, section 2, for 1.702.

    Attributes:
        opsets: Opsets at which Swish is written.
    """

    opsets: tuple[int, ...] = (24,)

    name: ClassVar[str] = "silu"
    pattern: ClassVar[Pattern] = op.Mul(
        _x,
        op.Sigmoid(one_of(op.Mul(_x, const("factor")), op.Div(_x, const("divisor")), _x)),
    )

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Write one Swish."""
        x = m.value("x")
        alpha = self._alpha(graph, m)
        if alpha is None:
            return Reject("the slope inside the Sigmoid is not one number")
        approximates = abs(alpha - GELU_SLOPE) < 1e-2
        kind = "the sigmoid approximation of Gelu, which only Swish can say: " * approximates
        reason = refusal(m, x, "Swish", SINCE)
        if reason is not None:
            return Reject(kind + reason.reason)
        if graph.opset not in self.opsets:
            return Reject(
                f"{kind}onnxruntime does not run Swish at opset {graph.opset} (see silu.opsets)"
            )
        return write(m, "Swish", x, None if alpha == 1.0 else {"alpha": alpha})

    @staticmethod
    def _alpha(graph: Graph, m: Match) -> float | None:
        if "factor" in m:
            return graph.scalar(m.value("factor"))
        if "divisor" in m:
            divisor = graph.scalar(m.value("divisor"))
            return 1.0 / divisor if divisor else None
        return 1.0
