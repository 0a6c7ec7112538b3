"""SkipSimplifiedLayerNormalization from a residual addition and RMSNormalization."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph.graph import Graph, Value
from qgraph.passes.contrib._skip import Skip, with_skip
from qgraph.pattern import Match, Pattern, const, op, var
from qgraph.pipeline import Reject


@dataclass(frozen=True)
class SkipRMSNorm(Skip):
    """com.microsoft.SkipSimplifiedLayerNormalization from Add and RMSNormalization.

    Before:
        s = Add(x, y)                       # read again by the next residual addition
        n = RMSNormalization<axis = -1, epsilon>(s, scale)

    After:
        n, _, _, s = SkipSimplifiedLayerNormalization<epsilon>(x, y, scale)

    When:
        x and y are known to have one shape, [batch, length, width] or [tokens, width], and the
        normalisation is over the width.

    Leaves alone:
        Sums that broadcast or may; a constant operand, as a bias; other axes; float64 statistics. A
        second normalisation of one sum.

    Numerics:
        Exact up to rounding. onnxruntime has no such fusion of its own for RMSNormalization.

    Source:
        https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.

    Attributes:
        exclude: Globs of node names and operators that are left alone.
    """

    name: ClassVar[str] = "skip_rmsnorm"
    writes: ClassVar[str] = "SkipSimplifiedLayerNormalization"
    pattern: ClassVar[Pattern] = op.RMSNormalization(var("sum"), const("scale"), bind="norm")

    def lowered(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Write one SkipSimplifiedLayerNormalization."""
        norm = m.node("norm")
        if graph.attribute(norm, "stash_type", 1) != 1:
            return Reject("its statistics are not computed in float32")
        epsilon = graph.attribute(norm, "epsilon", 1e-5)
        return with_skip(m, self.writes, [m.value("scale")], {"epsilon": epsilon})
