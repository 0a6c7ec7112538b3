"""Mish from Softplus, Tanh and Mul."""

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
from qgraph.pattern import Match, Pattern, op, var
from qgraph.pipeline import Fusion, Reject

SINCE = {FLOAT: 18, FLOAT16: 18, DOUBLE: 18, BFLOAT16: 22}

_x = var("x")


@dataclass(frozen=True)
class Mish(Fusion):
    """Mish from x * tanh(softplus(x)).

    Before:
        s = Softplus(x)
        t = Tanh(s)
        y = Mul(x, t)

    After:
        y = Mish(x)

    When:
        Opset 18 or later.

    Leaves alone:
        Earlier opsets; a Softplus or Tanh that is read elsewhere.

    Numerics:
        Exact up to rounding.

    Source:
        https://onnx.ai/onnx/operators/onnx__Mish.html; Misra, Mish: A Self Regularized
        Non-Monotonic Activation Function, 2019.
    """

    name: ClassVar[str] = "mish"
    pattern: ClassVar[Pattern] = op.Mul(_x, op.Tanh(op.Softplus(_x)))

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Write one Mish."""
        x = m.value("x")
        reason = refusal(m, x, "Mish", SINCE)
        return reason if reason is not None else write(m, "Mish", x)
