"""HardSigmoid from a shifted and scaled Clip."""

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
from qgraph.pattern import Match, Pattern, maybe, one_of, op, scalar, var
from qgraph.pipeline import Fusion, Reject

# onnxruntime has no float64 kernel.
SINCE = {FLOAT: 6, FLOAT16: 6, BFLOAT16: 22}

_x = var("x")


def relu6(x: Pattern) -> Pattern:
    """Match a Clip (whose bounds the rewrite must check: node `clip`) or Min(Relu(x), 6)."""
    return one_of(
        op.Clip(x, maybe("low"), maybe("high"), bind="clip"), op.Min(op.Relu(x), scalar(6.0))
    )


@dataclass(frozen=True)
class HardSigmoid(Fusion):
    """HardSigmoid from clip(x + 3, 0, 6) / 6, and from clip(x / 6 + 0.5, 0, 1).

    Before:
        a = Add(x, 3)
        c = Clip(a, 0, 6)
        y = Div(c, 6)

    After:
        y = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)

    The division may be a Mul by 1/6 and the Clip a Min(Relu(a), 6). The second form may also have the
    slope 0.2, HardSigmoid's own default.

    When:
        One-element constants; Clip bounds that are constant, and the formula's.

    Leaves alone:
        Other bounds, slopes and shifts; float64, for which onnxruntime has no kernel; integer
        arithmetic, where the division rounds; results inside the formula that are read elsewhere.

    Numerics:
        Exact up to rounding.

    Source:
        https://onnx.ai/onnx/operators/onnx__HardSigmoid.html; Howard et al., Searching for
        MobileNetV3, 2019, section 5.2.
    """

    name: ClassVar[str] = "hardsigmoid"
    pattern: ClassVar[Pattern] = one_of(
        product(relu6(op.Add(_x, scalar(3.0))), by=1 / 6),
        op.Clip(
            op.Add(one_of(product(_x, by=1 / 6), op.Mul(_x, scalar(0.2, "fifth"))), scalar(0.5)),
            maybe("low"),
            maybe("high"),
            bind="clip",
        ),
    )

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Write one HardSigmoid."""
        x = m.value("x")
        wanted = (0.0, 1.0) if m.root.op_type == "Clip" else (0.0, 6.0)
        if "clip" in m and clip_bounds(graph, m.node("clip")) != wanted:
            return Reject(f"the Clip's bounds are not the constants 0 and {wanted[1]:g}")
        reason = refusal(m, x, "HardSigmoid", SINCE)
        if reason is not None:
            return reason
        slope = 0.2 if "fifth" in m else 1 / 6
        return write(m, "HardSigmoid", x, {"alpha": slope, "beta": 0.5})
