"""Affine maps, one factor and one shift a channel, and folding them into Conv, Gemm and BN."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.passes.fusions._constants import FloatArray, constant, folded, rounded, scaled
from qgraph.pattern import Match
from qgraph.pipeline import Reject

LOSSY = "the folded weights overflow or underflow {}"


@dataclass(frozen=True)
class Affine:
    """The map `factor * y + shift` over channels.

    Attributes:
        factor: float64 [C].
        shift: float64 [C].
    """

    factor: FloatArray
    shift: FloatArray


def along(operand: NDArray[Any], axis: int, size: int, rank: int | None) -> FloatArray | None:
    """Return a constant operand of a broadcasting operator as one value a channel.

    Args:
        operand: The constant.
        axis: The other operand's channel axis; a negative one where its rank is unknown.
        size: Its number of channels.
        rank: Its rank, or None.

    Returns:
        float64 [size], or None where the operand varies along other axes, or might add axes to
        the result or make one longer.
    """
    if operand.ndim > (rank or 1):
        return None
    values = operand.astype(np.float64).reshape(-1)
    if values.size == 1:
        return np.full(size, values[0])
    place = axis + operand.ndim - (rank or 0) if axis >= 0 else axis + operand.ndim
    if values.size != size or not 0 <= place < operand.ndim or operand.shape[place] != size:
        return None
    return values


def arithmetic(
    op_type: str, operand: FloatArray, *, constant_first: bool = False
) -> Affine | Reject:
    """Return what Add, Sub, Mul or Div with a constant does to the other operand.

    Args:
        op_type: The operator.
        operand: The constant, float64 [C].
        constant_first: Whether it is the left operand.
    """
    one, zero = np.ones_like(operand), np.zeros_like(operand)
    if op_type == "Add":
        return Affine(one, operand)
    if op_type == "Mul":
        return Affine(operand, zero)
    if op_type == "Sub":
        return Affine(-one, operand) if constant_first else Affine(one, -operand)
    if constant_first:
        return Reject("it divides a constant by the result, which is not affine")
    if not operand.all():
        return Reject("it divides by zero")
    return Affine(1.0 / operand, zero)


def batchnorm(graph: Graph, node: Node, channels: int) -> Affine | Reject:
    """Return what a BatchNormalization in inference does to each of its channels."""
    if graph.attribute(node, "training_mode", 0):
        return Reject("the BatchNormalization is in training mode")
    arrays = [constant(graph, value) for value in node.inputs[1:5]]
    if any(array is None for array in arrays):
        return Reject("a parameter of the BatchNormalization is not a constant")
    exact = [array.astype(np.float64) for array in arrays if array is not None]
    if any(array.shape != (channels,) for array in exact):
        return Reject(f"the BatchNormalization's parameters do not have the {channels} channels")
    scale, shift, mean, variance = exact
    spread = variance + float(np.float32(graph.attribute(node, "epsilon", 1e-5)))
    if not (spread > 0).all():
        return Reject("a variance plus epsilon is not positive")
    factor = scale / np.sqrt(spread)
    return Affine(factor, shift - mean * factor)


def output_channels(graph: Graph, conv: Node, weight: NDArray[Any]) -> int:
    """Return the number of output channels of a Conv or ConvTranspose."""
    if conv.op_type == "Conv":
        return len(weight)
    return int(weight.shape[1]) * int(graph.attribute(conv, "group", 1))


@dataclass(frozen=True)
class Fold:
    """New constants for a node.

    Attributes:
        weight: The new weight, or None where it stays as it is.
        bias: The new bias, one value an output channel.
    """

    weight: NDArray[Any] | None
    bias: NDArray[Any]

    def put(self, graph: Graph, node: Node) -> None:
        """Make `node` (Conv, ConvTranspose, Gemm; MatMul if the bias is zero) read them."""
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        assert weight is not None
        if self.weight is not None:
            graph.set_input(node, 1, folded(graph, weight, self.weight))
        if bias is not None:
            graph.set_input(node, 2, folded(graph, bias, self.bias))
        elif self.bias.any():
            graph.set_input(node, 2, graph.constant(f"{weight.name}_bias", self.bias))


def fold_into_conv(graph: Graph, conv: Node, affine: Affine) -> Fold | Reject:
    """Return what makes a Conv or ConvTranspose compute `affine` of what it computed.

    Its weight (Conv `[M, C/g, k...]`, ConvTranspose `[C, M/g, k...]`, g groups) must be constant;
    see `constant`.
    """
    weight = constant(graph, conv.inputs[1])
    if weight is None:
        return Reject("the convolution's weight is not a constant")
    spread = affine.factor.reshape(-1, *[1] * (weight.ndim - 1))
    if conv.op_type == "ConvTranspose":
        groups = int(graph.attribute(conv, "group", 1))
        by_group = affine.factor.reshape(groups, 1, -1)
        spread = np.repeat(by_group, len(weight) // groups, axis=1)
        spread = spread.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    return _fold(graph, conv, weight, spread, affine)


def fold_into_linear(
    graph: Graph, node: Node, weight: NDArray[Any], affine: Affine
) -> Fold | Reject:
    """Return what makes a MatMul or Gemm (beta 1 if there is a shift) compute `affine` of it.

    Args:
        graph: The graph.
        node: Gemm or MatMul.
        weight: Its weight [K, N], or [N, K] for a Gemm with transB.
        affine: One factor and shift a column.
    """
    transposed = graph.attribute(node, "transB", 0)
    spread = affine.factor[:, None] if transposed else affine.factor[None, :]
    return _fold(graph, node, weight, spread, affine)


def bias_of(graph: Graph, value: Value | None, size: int) -> FloatArray | Reject:
    """Return a bias as float64 [size]; an omitted one is zero."""
    if value is None:
        return np.zeros(size)
    array = constant(graph, value)
    if array is None:
        return Reject("the bias is not a constant")
    found = along(array, -1, size, 2)
    return Reject("the bias does not have one value a channel") if found is None else found


def _fold(
    graph: Graph, node: Node, weight: NDArray[Any], spread: FloatArray, affine: Affine
) -> Fold | Reject:
    old = node.inputs[2] if len(node.inputs) > 2 else None
    bias = bias_of(graph, old, len(affine.factor))
    if isinstance(bias, Reject):
        return bias
    same = bool((affine.factor == 1).all())
    new_weight = None if same else scaled(weight, spread)
    with np.errstate(invalid="ignore"):
        new_bias = rounded(bias * affine.factor + affine.shift, weight.dtype)
    if new_bias is None or (new_weight is None and not same):
        return Reject(LOSSY.format(weight.dtype))
    return Fold(new_weight, new_bias)


def operand_first(m: Match) -> bool:
    """Whether the root of a match reads the matched constant `operand` on its left."""
    return m.root.inputs[0] is m.value("operand")
