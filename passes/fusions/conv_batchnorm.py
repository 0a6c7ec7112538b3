"""Conv or ConvTranspose followed by BatchNormalization becomes one convolution."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph.graph import Graph, Value
from qgraph.passes.fusions._affine import batchnorm, fold_into_conv, output_channels
from qgraph.passes.fusions._constants import constant, standing_in
from qgraph.pattern import Match, Pattern, maybe, op, var
from qgraph.pipeline import Fusion, Reject


@dataclass(frozen=True)
class ConvBatchNorm(Fusion):
    """Fold BatchNormalization into the weight and bias of the convolution before it.

    Before:
        y = Conv(x, weight, bias)
        z = BatchNormalization <epsilon> (y, scale, shift, mean, variance)

    After:
        z = Conv(x, weight_folded, bias_folded)

        where factor = scale / sqrt(variance + epsilon), one value an output channel,
        weight_folded = weight * factor and bias_folded = (bias - mean) * factor + shift.

    When:
        Conv and ConvTranspose of any rank and any number of groups, with or without bias, whose
        weight, bias and statistics are constants; they may stand behind Identity, Cast,
        Transpose or Reshape. A weight with other readers is copied, not changed.

    Leaves alone:
        Training mode; weights or statistics that are computed; a convolution with a second
        reader; a BatchNormalization whose further outputs are read; a variance plus epsilon that
        is not positive; folded weights that overflow or underflow their type.

    Numerics:
        Exact up to rounding: computed in float64, rounded once to the weight's type.

    Source:
        https://onnx.ai/onnx/operators/onnx__BatchNormalization.html (the formula for inference);
        Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """

    name: ClassVar[str] = "conv_batchnorm"
    pattern: ClassVar[Pattern] = op.BatchNormalization(
        op.any_of("Conv", "ConvTranspose")(var("x"), var("weight"), maybe("bias"), bind="conv"),
        var("scale"),
        var("shift"),
        var("mean"),
        var("variance"),
    )

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Fold the statistics into the convolution in place."""
        conv = m.node("conv")
        weight = constant(graph, m.value("weight"))
        if weight is None:
            return Reject("the convolution's weight is not a constant")
        affine = batchnorm(graph, m.root, output_channels(graph, conv, weight))
        if isinstance(affine, Reject):
            return affine
        fold = fold_into_conv(graph, conv, affine)
        if isinstance(fold, Reject):
            return fold
        fold.put(graph, conv)
        return standing_in(conv.outputs[0], m.root)
