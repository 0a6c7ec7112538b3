"""Gelu from its decomposed forms."""

import math
from dataclasses import dataclass
from typing import ClassVar

from qgraph.graph import Graph, Value
from qgraph.passes.fusions._elementwise import (
    BFLOAT16,
    DOUBLE,
    FLOAT,
    FLOAT16,
    product,
    refusal,
    write,
)
from qgraph.pattern import Match, Pattern, one_of, op, scalar, var
from qgraph.pipeline import Fusion, Reject

SINCE = {FLOAT: 20, FLOAT16: 20, DOUBLE: 20, BFLOAT16: 20}
CUBIC = 0.044715

_x = var("x")


def _gated(gate: Pattern) -> Pattern:
    """Match x / 2 * (1 + gate), in any order, also as x * (gate / 2 + 1 / 2)."""
    return one_of(
        product(_x, op.Add(gate, scalar(1.0)), by=0.5),
        op.Mul(_x, op.Add(product(gate, by=0.5), scalar(0.5))),
    )


def _tanh() -> Pattern:
    square = one_of(op.Mul(_x, _x), op.Pow(_x, scalar(2.0)))
    twice = op.Mul(product(_x, by=CUBIC), _x)
    cubic = one_of(
        product(op.Pow(_x, scalar(3.0)), by=CUBIC),
        product(_x, square, by=CUBIC),
        op.Mul(twice, _x),
    )
    quadratic = one_of(product(square, by=CUBIC), twice)
    slope = math.sqrt(2.0 / math.pi)
    return op.Tanh(
        one_of(
            product(op.Add(_x, cubic), by=slope),
            product(_x, op.Add(quadratic, scalar(1.0)), by=slope),
        ),
        bind="tanh",
    )


@dataclass(frozen=True)
class Gelu(Fusion):
    """Gelu from its erf form and its tanh form, exact in both.

    Before:
        a = Div(x, 1.4142135)
        e = Erf(a)
        g = Add(e, 1)
        h = Mul(x, g)
        y = Mul(h, 0.5)

    After:
        y = Gelu(x)

    The tanh form, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), becomes
    Gelu<approximate = "tanh">. The factors of both products may be multiplied in any order, constant
    factors may be divisors, and powers may be written as Pow or as Mul.

    When:
        Opset 20 or later; one-element constants within 1e-4 of the formula's.

    Leaves alone:
        Earlier opsets; integer arithmetic; results inside the formula that are read elsewhere or
        are graph outputs. The sigmoid form x * sigmoid(1.702 x) is another function: see `silu`.

    Numerics:
        Exact up to rounding.

    Source:
        https://onnx.ai/onnx/operators/onnx__Gelu.html; Hendrycks and Gimpel, Gaussian Error
        Linear Units, 2016, section 2.
    """

    name: ClassVar[str] = "gelu"
    pattern: ClassVar[Pattern] = _gated(one_of(op.Erf(product(_x, by=math.sqrt(0.5))), _tanh()))

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Write one Gelu."""
        x = m.value("x")
        reason = refusal(m, x, "Gelu", SINCE)
        if reason is not None:
            return reason
        return write(m, "Gelu", x, {"approximate": "tanh"} if "tanh" in m else None)
