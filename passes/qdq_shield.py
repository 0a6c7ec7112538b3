"""Keeps float weights float behind a DequantizeLinear, where engines would quantize them."""

import numpy as np
import onnx_ir as ir

from qgraph.encoding import INTEGERS, Encoding
from qgraph.graph import Graph, Node, Value
from qgraph.pipeline import PassReport

# Operators whose float weight onnxruntime may quantize, and those that it moves a
# DequantizeLinear through on the way to one.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm")
MOVED_THROUGH = (
    "Flatten",
    "Identity",
    "MaxPool",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


def shield(graph: Graph, node: Node, shared: Value, encoding: Encoding, report: PassReport) -> None:
    """Give a float node that reads codes a DequantizeLinear that keeps its weight in float.

    onnxruntime's WeightBiasQuantization turns the float weight of a Conv, ConvTranspose or Gemm
    between DequantizeLinear and QuantizeLinear into int8 with one scale per tensor, whatever the
    plan says. It looks for a scalar scale: the same scale, written once an index of some axis,
    means the same and stops it.

    Args:
        graph: Graph to rewrite.
        node: A float node; left alone unless such a weight is there, or behind layout operators.
        shared: What it reads as its first input: a DequantizeLinear's result.
        encoding: Encoding of `shared`, per tensor.
        report: Where it is noted that nothing could be done.

    Source: onnxruntime/core/optimizer/qdq_transformer/weight_bias_quantization.cc, and
        qdq_propagation.cc for what DequantizeLinear is moved through.
    """
    pair = shared.producer()
    weighted = _weighted(graph, node)
    if weighted is None or pair is None:
        return
    length, axis = _known_axis(graph, shared) or (
        _channels(graph, node) if weighted is node else (0, 0)
    )
    if length < 2:
        report.refuse(
            weighted.name or "", "onnxruntime may quantize its weight: unknown input shape"
        )
        return
    dtype = INTEGERS[encoding.dtype][2]
    name = f"{node.name}_input"
    scale = np.full(length, encoding.scale)
    zero = np.full(length, encoding.zero_point, dtype)
    dq = graph.insert(
        "DequantizeLinear",
        [
            pair.inputs[0],
            graph.constant(f"{name}_scale", scale),
            graph.constant(f"{name}_zero_point", zero),
        ],
        after=pair,
        attributes={"axis": axis},
        name=f"{name}_dq",
        like=shared,
    )
    graph.set_input(node, 0, dq.outputs[0])


def _weighted(graph: Graph, node: Node) -> Node | None:
    """The float node with a constant weight whose data is `node`'s input, moved at most."""
    todo, seen = [node], set[Node]()
    while todo:
        each = todo.pop()
        if each in seen:
            continue
        seen.add(each)
        if graph.is_standard(each, *WEIGHTED):
            weight = graph.tensor(each.inputs[1])
            if weight is not None and weight.dtype == ir.DataType.FLOAT:
                return each
        elif graph.is_standard(each, *MOVED_THROUGH):
            todo += [use.node for use in each.outputs[0].uses() if use.idx == 0]
    return None


def _known_axis(graph: Graph, value: Value) -> tuple[int, int] | None:
    """Length and number of an axis of known length of at least 2; None if there is none."""
    lengths = graph.shape(value) or ()
    known = [(n, axis) for axis, n in enumerate(lengths) if isinstance(n, int) and n > 1]
    return min(known, default=None)


def _channels(graph: Graph, node: Node) -> tuple[int, int]:
    """Channels of a weighted node's data input and their axis, as its weight tells them."""
    tensor = graph.tensor(node.inputs[1])
    assert tensor is not None
    shape = tensor.shape.numpy()
    if node.op_type == "Conv":
        return shape[1] * graph.attribute(node, "group", 1), 1
    if node.op_type == "ConvTranspose":
        return shape[0], 1
    depth = shape[1] if graph.attribute(node, "transB", 0) else shape[0]
    return depth, 0 if graph.attribute(node, "transA", 0) else 1
