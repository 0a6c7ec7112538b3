"""Constant arithmetic behind a convolution or BatchNormalization folds into it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qgraph.graph import Graph, Node, Value
from qgraph.passes.fusions._affine import (
    LOSSY,
    Affine,
    along,
    arithmetic,
    fold_into_conv,
    operand_first,
    output_channels,
)
from qgraph.passes.fusions._constants import constant, folded, rounded, standing_in
from qgraph.pattern import Match, Pattern, const, maybe, one_of, op, var
from qgraph.pipeline import Fusion, Reject

_ANCHOR = one_of(
    op.any_of("Conv", "ConvTranspose")(var("x"), var("weight"), maybe("bias"), bind="anchor"),
    op.BatchNormalization(
        var("x"), var("scale"), var("shift"), var("mean"), var("variance"), bind="anchor"
    ),
)


@dataclass(frozen=True)
class ConvScale(Fusion):
    """Fold a constant Mul, Add, Sub or Div into the Conv, ConvTranspose or BN before it.

    Before:
        y = Conv(x, weight, bias)
        z = Mul(y, operand)

    After:
        z = Conv(x, weight_folded, bias_folded)

        where weight_folded = weight * operand, one factor an output channel, and bias_folded =
        bias * operand; Add and Sub change the bias alone. Behind a BatchNormalization its scale
        and shift change in the same way, so that any chain of these ends in one node.

    When:
        The operand is a constant: one element, or one value a channel and length 1 along every
        other axis. Either operand order of Mul, Add and Sub (`operand - y` negates the weight).

    Leaves alone:
        `operand / y`; division by zero; an operand that varies along the batch or space, or that
        would give the result more axes or longer ones; computed weights; a convolution with a
        second reader; folded weights that overflow or underflow their type; a
        BatchNormalization of unknown rank with an operand of one value a channel.

    Numerics:
        Exact up to rounding: computed in float64, rounded once to the weight's type.

    Source:
        https://onnx.ai/onnx/repo-docs/Broadcasting.html and the definition of Conv, which is
        linear in its weight and bias.
    """

    name: ClassVar[str] = "conv_scale"
    pattern: ClassVar[Pattern] = one_of(
        op.any_of("Mul", "Add", "Sub", "Div")(const("operand"), _ANCHOR),
        op.any_of("Sub", "Div")(_ANCHOR, const("operand")),
    )

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Fold the operand into the convolution or BatchNormalization in place."""
        anchor = m.node("anchor")
        is_norm = anchor.op_type == "BatchNormalization"
        weight = constant(graph, anchor.inputs[1])
        if weight is None:
            return Reject("the convolution's weight is not a constant")
        channels = len(weight) if is_norm else output_channels(graph, anchor, weight)
        rank = graph.rank(m.value("x")) if is_norm else weight.ndim
        operand = constant(graph, m.value("operand"))
        values = None if operand is None else along(operand, 1, channels, rank)
        if values is None:
            return Reject("the constant is not one element or one value a channel")
        affine = arithmetic(m.root.op_type, values, constant_first=operand_first(m))
        if isinstance(affine, Reject):
            return affine
        fold = _fold_into_norm if is_norm else _fold_into_conv
        refused = fold(graph, anchor, affine)
        return refused or standing_in(anchor.outputs[0], m.root)


def _fold_into_conv(graph: Graph, conv: Node, affine: Affine) -> Reject | None:
    fold = fold_into_conv(graph, conv, affine)
    if isinstance(fold, Reject):
        return fold
    fold.put(graph, conv)
    return None


def _fold_into_norm(graph: Graph, bn: Node, affine: Affine) -> Reject | None:
    scale, shift = constant(graph, bn.inputs[1]), constant(graph, bn.inputs[2])
    if graph.attribute(bn, "training_mode", 0):
        return Reject("the BatchNormalization is in training mode")
    if scale is None or shift is None or bn.inputs[1] is None or bn.inputs[2] is None:
        return Reject("a parameter of the BatchNormalization is not a constant")
    new_scale = rounded(scale.astype(np.float64) * affine.factor, scale.dtype)
    new_shift = rounded(shift.astype(np.float64) * affine.factor + affine.shift, shift.dtype)
    if new_scale is None or new_shift is None:
        return Reject(LOSSY.format(scale.dtype))
    graph.set_input(bn, 1, folded(graph, bn.inputs[1], new_scale))
    graph.set_input(bn, 2, folded(graph, bn.inputs[2], new_shift))
    return None
