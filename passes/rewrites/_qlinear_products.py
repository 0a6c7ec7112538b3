"""Float forms of QLinearConv, QLinearMatMul and QGemm."""

import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Value
from qgraph.passes.rewrites._lowering import Lowering, RefusedError


def convolution(node: Lowering) -> Value:
    """x, its scale and zero point, w, its two, y's two, int32 bias B."""
    node.plain_layout()
    node.one_scale(1, "input")
    node.one_scale(6, "result")
    data_scale, weight_scale = node.array(1, "input scale"), node.array(4, "weight scale")
    dtype = node.code_type(0, 2)
    bias = None
    if node.input(8) is not None:
        bias = _bias(node, 8, data_scale, weight_scale, 1.0)
    inputs = [
        node.dequantize(node.needed(0), node.needed(1), node.input(2)),
        node.dequantize(node.needed(3), node.needed(4), node.input(5), _axis(weight_scale, 0)),
    ]
    result = node.compute("Conv", [*inputs, bias] if bias is not None else inputs)
    return node.quantize(result, node.needed(6), node.input(7), dtype)


def product(node: Lowering) -> Value:
    """a, its scale and zero point, b, its two, y's two."""
    node.one_scale(1, "first operand")
    node.one_scale(6, "result")
    dtype = node.code_type(0, 2)
    inputs = [
        node.dequantize(node.needed(0), node.needed(1), node.input(2)),
        node.dequantize(node.needed(3), node.needed(4), node.input(5), _columns(node, 3, 4)),
    ]
    return node.quantize(node.compute("MatMul", inputs), node.needed(6), node.input(7), dtype)


def gemm(node: Lowering) -> Value:
    """A, its scale and zero point, B, its two, int32 C, and y's two, without which y is float."""
    node.one_scale(1, "first operand")
    graph = node.graph
    alpha = float(graph.attribute(node.node, "alpha", 1.0))
    first, second = node.array(1, "scale of A"), node.array(4, "scale of B")
    transposed = bool(graph.attribute(node.node, "transB", 0))
    dtype = node.code_type(0, 2)
    if node.input(7) is not None:
        node.one_scale(7, "result")
    # The kernel adds C to the integer sums, so alpha multiplies it too.
    bias = _bias(node, 6, first, second, alpha) if node.input(6) is not None else None
    axis = None if second.size == 1 else 0 if transposed else 1
    inputs = [
        node.dequantize(node.needed(0), node.needed(1), node.input(2)),
        node.dequantize(node.needed(3), node.needed(4), node.input(5), axis),
    ]
    result = node.compute("Gemm", [*inputs, bias] if bias is not None else inputs)
    scale = node.input(7)
    return result if scale is None else node.quantize(result, scale, node.input(8), dtype)


def _bias(
    node: Lowering,
    index: int,
    data_scale: NDArray[np.float32],
    weight_scale: NDArray[np.float32],
    factor: float,
) -> Value:
    """Return the float bias behind an int32 one: its step is that of the integer sums."""
    step = data_scale.reshape(-1) * weight_scale.reshape(-1) * np.float32(factor)
    if step.size == 1:
        step = step.reshape(())
    bias = node.needed(index)
    shape = node.graph.shape(bias)
    if step.ndim and (shape is None or shape[-1] != step.size):
        raise RefusedError("its bias is not one value a channel")
    if not np.isfinite(step).all():
        raise RefusedError("the step of its bias is not finite")
    scale = node.graph.constant(f"{bias.name}_scale", step.astype(np.float32))
    axis = None if not step.ndim else len(shape or ()) - 1
    return node.dequantize(bias, scale, None, axis)


def _columns(node: Lowering, codes: int, scale: int) -> int | None:
    """Return the axis of a right operand's scales: one for all, or one a column."""
    array = node.graph.array(node.needed(scale))
    if array is None:
        node.one_scale(scale, "second operand")
    if array is None or array.size == 1:
        return None
    rank = node.graph.rank(node.needed(codes))
    if array.ndim != 1 or rank is None:
        raise RefusedError("its second operand has a scale a row or channel")
    return rank - 1


def _axis(scale: NDArray[np.float32], axis: int) -> int | None:
    return None if scale.size == 1 else axis
