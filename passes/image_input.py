"""Puts raw images in the place of a float input."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.interface import Pixels
from qgraph.passes.image_conv import SPLIT_OPSET, as_codes
from qgraph.pipeline import PassReport

_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
TYPES = {"uint8": ir.DataType.UINT8, "int8": ir.DataType.INT8}


def take_pixels(
    graph: Graph, value: Value, pixels: Pixels, report: PassReport, *, bytes_first: bool
) -> None:
    """Make an input take raw images.

    Where all that reads it is quantized and leads to one convolution, pixels become the codes
    that it reads (see `qgraph.passes.image_conv`). Elsewhere `pixel * a + b` stands in front, in
    float32.

    Args:
        graph: Graph to rewrite, quantized or not.
        value: Float input of four axes.
        pixels: What it takes from now on.
        report: Where it is noted what became of it.
        bytes_first: Whether the engine moves bytes. Changing the layout of bytes is then quicker
            than of floats, and single channels are quicker than a Transpose: mobilenet_v2 on
            onnxruntime takes 1.3 ms longer with one (docs/io.md).
    """
    refused = as_codes(graph, value, pixels)
    if refused is None:
        report.did(f"{value.name}: pixels are the codes that the first convolution reads")
        _retype(value, pixels)
        return
    report.refuse(value.name or "", f"pixels are no codes of its convolution: {refused}")
    readers = [(use.node, use.idx) for use in value.uses()]
    first = next(iter(graph.main))
    turn = _turn(pixels)
    splits = bytes_first and turn == _TO_NCHW and pixels.dtype == "uint8"
    splits = splits and graph.opset >= SPLIT_OPSET
    shape = graph.shape(value)
    current = _retype(value, pixels)
    if splits:
        current = _channels_first(graph, current, pixels, first)
    current = _insert(graph, "Cast", [current], first, {"to": int(ir.DataType.FLOAT)})
    if turn is not None and not splits:
        current = _insert(graph, "Transpose", [current], first, {"perm": turn})
    scale, offset = affine(pixels)
    axes = (1, -1, 1, 1) if pixels.images.layout == "NCHW" else (1, 1, 1, -1)
    for op, numbers, neutral in (("Mul", scale, 1.0), ("Add", offset, 0.0)):
        if (numbers != neutral).any():
            per_channel = numbers.astype(np.float32).reshape(axes)
            inputs = [current, graph.constant(f"{value.name}_{op.lower()}", per_channel)]
            current = _insert(graph, op, inputs, first)
    current.type = ir.TensorType(ir.DataType.FLOAT)
    current.shape = None if shape is None else ir.Shape(shape)
    for node, index in readers:
        graph.set_input(node, index, current)
    report.did(f"{value.name}: takes pixels, made floats in front")


def affine(pixels: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return slope and offset of `value = raw * slope + offset`, float64 [channels]."""
    options = pixels.images
    mean, std = np.broadcast_arrays(np.array(options.mean), np.array(options.std))
    scale = options.scale / std
    return scale, -mean / std + pixels.shift * scale


def _turn(pixels: Pixels) -> tuple[int, ...] | None:
    """Transposition from the raw layout to the model's, None where they are one."""
    if pixels.layout == pixels.images.layout:
        return None
    return _TO_NCHW if pixels.layout == "NHWC" else _TO_NHWC


def _retype(value: Value, pixels: Pixels) -> Value:
    """Give the input its new type and shape, once nobody reads it as it was."""
    turn = _turn(pixels)
    if turn is not None and value.shape is not None:
        dims = [d if isinstance(d, int) else d.value for d in value.shape]
        moved: list[int | str | None] = [None] * len(dims)
        for place, source in enumerate(turn):
            moved[source] = dims[place]
        value.shape = ir.Shape(moved)
    value.type = ir.TensorType(TYPES[pixels.dtype])
    return value


def _channels_first(graph: Graph, value: Value, pixels: Pixels, before: Node) -> Value:
    """Move the channels of bytes from the last axis to the second."""
    count = 1 if pixels.images.channels == "gray" else 3
    parts: Sequence[Value] = [value]
    if count > 1:
        attributes = {"axis": 3, "num_outputs": count}
        split = graph.insert(
            "Split", [value], before=before, attributes=attributes, outputs=count, name="channels"
        )
        parts = split.outputs
    last = graph.constant("last_axis", np.array([3], np.int64))
    second = graph.constant("second_axis", np.array([1], np.int64))
    planes: list[Value | None] = []
    for part in parts:
        flat = _insert(graph, "Squeeze", [part, last], before)
        planes.append(_insert(graph, "Unsqueeze", [flat, second], before))
    if count == 1:
        assert planes[0] is not None
        return planes[0]
    return _insert(graph, "Concat", planes, before, {"axis": 1})


def _insert(
    graph: Graph,
    op: str,
    inputs: Sequence[Value | None],
    before: Node,
    attributes: dict[str, int | Sequence[int]] | None = None,
) -> Value:
    node = graph.insert(op, inputs, before=before, attributes=attributes, name=f"pixels_{op}")
    return node.outputs[0]
