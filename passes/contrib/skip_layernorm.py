"""SkipLayerNormalization from a residual addition and LayerNormalization."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph.graph import Graph, Value
from qgraph.passes.contrib._skip import Skip, with_skip
from qgraph.pattern import Match, Pattern, const, maybe, op, var
from qgraph.pipeline import Reject


@dataclass(frozen=True)
class SkipLayerNorm(Skip):
    """com.microsoft.SkipLayerNormalization from Add and LayerNormalization.

    Before:
        s = Add(x, y)                       # read again by the next residual addition
        n = LayerNormalization<axis = -1, epsilon>(s, scale, bias)

    After:
        n, _, _, s = SkipLayerNormalization<epsilon>(x, y, scale, bias)

    When:
        x and y are known to have one shape, [batch, length, width] or [tokens, width], and the
        normalisation is over the width.

    Leaves alone:
        Sums that broadcast or may; a constant operand, as a bias; other axes; other statistics; a
        second normalisation of one sum; a LayerNormalization whose statistics are read.

    Numerics:
        Exact up to rounding. onnxruntime's own fusion leaves sums alone that are read again, as
        those of every block that normalises first.

    Source:
        https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.

    Attributes:
        exclude: Globs of node names and operators that are left alone.
    """

    name: ClassVar[str] = "skip_layernorm"
    writes: ClassVar[str] = "SkipLayerNormalization"
    pattern: ClassVar[Pattern] = op.LayerNormalization(
        var("sum"), const("scale"), maybe("bias"), bind="norm"
    )

    def lowered(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Write one SkipLayerNormalization."""
        norm = m.node("norm")
        if graph.attribute(norm, "stash_type", 1) != 1:
            return Reject("its statistics are not computed in float32")
        epsilon = graph.attribute(norm, "epsilon", 1e-5)
        parameters = [m.value(name) for name in ("scale", "bias") if name in m]
        return with_skip(m, self.writes, parameters, {"epsilon": epsilon})
