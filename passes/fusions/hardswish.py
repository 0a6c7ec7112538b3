"""HardSwish from a HardSigmoid or a shifted Clip, times x."""

import math
from dataclasses import dataclass
from typing import ClassVar

from qgraph.graph import Graph, Value
from qgraph.passes.fusions._elementwise import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    clip_bounds,
    product,
    refusal,
    write,
)
from qgraph.passes.fusions.hardsigmoid import relu6
from qgraph.pattern import Match, Pattern, one_of, op, scalar, var
from qgraph.pipeline import Fusion, Reject

# onnxruntime expands HardSwish to HardSigmoid, which has no float64 kernel.
SINCE = {FLOAT: 14, FLOAT16: 14, BFLOAT16: 22}

_x = var("x")


@dataclass(frozen=True)
class HardSwish(Fusion):
    """HardSwish from x * clip(x + 3, 0, 6) / 6, and from x * HardSigmoid(x).

    Before:
        a = Add(x, 3)
        c = Clip(a, 0, 6)
        m = Mul(x, c)
        y = Div(m, 6)

    After:
        y = HardSwish(x)

    The three factors may be multiplied in any order, the division may be a Mul by 1/6, and the Clip a
    Min(Relu(a), 6). After `hardsigmoid`, x * clip(x / 6 + 0.5, 0, 1) is found as well.

    When:
        Opset 14 or later; one-element constants; Clip bounds 0 and 6; HardSigmoid with alpha 1/6
        and beta 0.5.

    Leaves alone:
        Earlier opsets; other constants; float64, for which onnxruntime has no kernel; integer
        arithmetic; results inside the formula that are read elsewhere.

    Numerics:
        Exact up to rounding.

    Source:
        https://onnx.ai/onnx/operators/onnx__HardSwish.html; Howard et al., Searching for
        MobileNetV3, 2019, section 5.2.
    """

    name: ClassVar[str] = "hardswish"
    pattern: ClassVar[Pattern] = one_of(
        product(_x, relu6(op.Add(_x, scalar(3.0))), by=1 / 6),
        op.Mul(_x, op.HardSigmoid(_x, bind="gate")),
    )

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Write one HardSwish."""
        x = m.value("x")
        if "clip" in m and clip_bounds(graph, m.node("clip")) != (0.0, 6.0):
            return Reject("the Clip's bounds are not the constants 0 and 6")
        if "gate" in m and not self._is_sixth(graph, m):
            return Reject("the HardSigmoid's alpha and beta are not 1/6 and 0.5")
        reason = refusal(m, x, "HardSwish", SINCE)
        return reason if reason is not None else write(m, "HardSwish", x)

    @staticmethod
    def _is_sixth(graph: Graph, m: Match) -> bool:
        alpha = graph.attribute(m.node("gate"), "alpha", 0.2)
        beta = graph.attribute(m.node("gate"), "beta", 0.5)
        return math.isclose(alpha, 1 / 6, rel_tol=1e-4) and math.isclose(beta, 0.5, rel_tol=1e-4)
