"""LayerNormalization from means, a square root and a division."""

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
from qgraph.pattern import Match, Pattern, const, maybe, one_of, op
from qgraph.pipeline import Fusion, Reject

OPSET = 17


def _pattern() -> Pattern:
    x = source()
    centred = op.Sub(x, op.ReduceMean(x, maybe("axes"), bind="mean"))
    normed = over_root(centred, mean_of_square(centred))
    scaled = op.Mul(narrowed(normed), const("scale"))
    return one_of(op.Add(scaled, const("bias")), scaled, normed)


@dataclass(frozen=True)
class LayerNorm(Fusion):
    """LayerNormalization from its decomposed form.

    Before:
        m = ReduceMean<axes = [-1]>(x)
        d = Sub(x, m)
        p = Pow(d, 2)
        v = ReduceMean<axes = [-1]>(p)
        e = Add(v, epsilon)
        s = Sqrt(e)
        n = Div(d, s)
        h = Mul(n, scale)
        y = Add(h, bias)

    After:
        y = LayerNormalization<axis = -1, epsilon = ...>(x, scale, bias)

    The square may be a Mul, the division a Mul with Reciprocal(s), 1 / s or Pow(e, -0.5), the Sub
    may stand there twice, and bias or scale and bias may be missing. Where x is cast to float32
    before and n is cast back, the Casts go too.

    When:
        Opset 17 or later; both means over the same last axes, with keepdims; scale and bias
        constant and of the normalised axes' shape or broadcast to it. Without a scale, the
        normalised axes' length must be known, since the operator wants one: ones are added.

    Leaves alone:
        Earlier opsets; other or unknown axes; float64, since the operator's statistics are float32;
        scales that vary along other axes (the normalisation before them is still fused);
        results inside the formula that are read elsewhere or are graph outputs.

    Numerics:
        Exact up to rounding. In float16 the statistics are computed in float32, which is closer to
        the formula than before.

    Source:
        https://onnx.ai/onnx/operators/onnx__LayerNormalization.html; Ba, Kiros and Hinton, Layer
        Normalization, 2016, section 3.1.
    """

    name: ClassVar[str] = "layernorm"
    pattern: ClassVar[Pattern] = _pattern()
    largest_first: ClassVar[bool] = True

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Write one LayerNormalization."""
        if graph.opset < OPSET:
            return Reject(needs_opset("LayerNormalization", OPSET, graph.opset))
        found = core(m)
        if isinstance(found, Reject):
            return found
        arrays = []
        for name in ("scale", "bias"):
            array = parameter(m, name, found) if name in m else None
            if isinstance(array, Reject):
                return array
            arrays.append(array)
        scale, bias = arrays
        first = scale_of_ones(m, found) if scale is None else as_value(m, "scale", scale)
        if isinstance(first, Reject):
            return first
        inputs = [found.x, first]
        if bias is not None:
            inputs.append(as_value(m, "bias", bias))
        node = graph.insert(
            "LayerNormalization",
            inputs,
            before=m.root,
            attributes=found.attributes(),
            like=m.root.outputs[0],
        )
        return standing_in(node.outputs[0], m.root)
