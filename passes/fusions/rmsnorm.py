"""RMSNormalization from a mean of squares, a square root and a division."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph.graph import Graph, Value
from qgraph.passes.fusions._constants import standing_in
from qgraph.passes.fusions._elementwise import needs_opset
from qgraph.passes.fusions._norm import (
    as_value,
    core,
    mean_of_square,
    narrowed,
    over_root,
    parameter,
    scale_of_ones,
    source,
)
from qgraph.pattern import Match, Pattern, const, one_of, op
from qgraph.pipeline import Fusion, Reject

OPSET = 23


def _pattern() -> Pattern:
    x = source()
    normed = over_root(x, mean_of_square(x))
    return one_of(op.Mul(narrowed(normed), const("scale")), normed)


@dataclass(frozen=True)
class RMSNorm(Fusion):
    """RMSNormalization from its decomposed form.

    Before:
        p = Pow(x, 2)
        v = ReduceMean<axes = [-1]>(p)
        e = Add(v, epsilon)
        s = Sqrt(e)
        r = Reciprocal(s)
        n = Mul(x, r)
        y = Mul(n, scale)

    After:
        y = RMSNormalization<axis = -1, epsilon = ...>(x, scale)

    The square may be a Mul, and r may be 1 / s or Pow(e, -0.5), or n may be Div(x, s). Where x is
    cast to float32 before and n is cast back, the Casts go too.

    When:
        Opset 23 or later; the mean over the last axes, with keepdims; the scale constant and of the
        normalised axes' shape or broadcast to it. Without a scale, the normalised axes' length
        must be known: ones are added.

    Leaves alone:
        Earlier opsets, which have no such operator; other or unknown axes; float64, since the
        operator's statistics are float32; the second half of a LayerNormalization that could
        not be fused; results inside the formula that are read elsewhere or are graph outputs.

    Numerics:
        Exact up to rounding. onnxruntime 1.31 has a CPU kernel for float32 and float16.

    Source:
        https://onnx.ai/onnx/operators/onnx__RMSNormalization.html; Zhang and Sennrich, Root Mean
        Square Layer Normalization, 2019, equation 4.
    """

    name: ClassVar[str] = "rmsnorm"
    pattern: ClassVar[Pattern] = _pattern()
    largest_first: ClassVar[bool] = True

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Write one RMSNormalization."""
        if _is_centred(graph, m):
            return Reject("it is the second half of a LayerNormalization")
        if graph.opset < OPSET:
            return Reject(needs_opset("RMSNormalization", OPSET, graph.opset))
        found = core(m)
        if isinstance(found, Reject):
            return found
        scale = parameter(m, "scale", found) if "scale" in m else None
        if isinstance(scale, Reject):
            return scale
        second = scale_of_ones(m, found) if scale is None else as_value(m, "scale", scale)
        if isinstance(second, Reject):
            return second
        node = graph.insert(
            "RMSNormalization",
            [found.x, second],
            before=m.root,
            attributes=found.attributes(),
            like=m.root.outputs[0],
        )
        return standing_in(node.outputs[0], m.root)


def _is_centred(graph: Graph, m: Match) -> bool:
    sub = m.value("x").producer() if "x" in m else None
    if sub is None or not graph.is_standard(sub, "Sub") or sub.inputs[1] is None:
        return False
    mean = sub.inputs[1].producer()
    return mean is not None and graph.is_standard(mean, "ReduceMean")
