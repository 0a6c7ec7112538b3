"""Raw pixels as the codes of a quantized first convolution."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.encoding import INTEGERS
from qgraph.graph import Graph, Node, Value
from qgraph.interface import Pixels

_NCHW = (0, 1, 2, 3)
_TO_NCHW = (0, 3, 1, 2)
# How far slopes of channels may be apart, relative, to be one scale.
_SAME = 1e-6
# Since when Split takes the number of parts.
SPLIT_OPSET = 18


@dataclass(frozen=True, eq=False)
class _Path:
    """The way from the input to the only convolution behind it.

    Attributes:
        nodes: What stands between, in order.
        conv: The convolution.
        codes: Its weight's codes, [M, C, kH, kW].
        step: Its weight's scale, float32 [M] or [].
        ratio: What the channels are multiplied by on the way, float64 [C] or [1].
    """

    nodes: list[Node]
    conv: Node
    codes: NDArray[np.int64]
    step: NDArray[np.float32]
    ratio: NDArray[np.float64]


def as_codes(graph: Graph, value: Value, pixels: Pixels) -> str | None:
    """Let the first convolution read pixels as codes; the graph changes only if that works.

    With slope a (the same for all channels) and the pixel z of channel c that means zero,
    value = a (pixel - z[c]). The data's encoding gets scale a and one zero point for all
    channels; what the channels lack goes to the bias. So nothing is rounded but in the border:
    padding means zero, and z[c] is no whole number in general. The zero point is the border's
    pixel where it is the same for all channels; else a border of each channel's own is put around
    the image. Border values are off by half a pixel step at most.

    Args:
        graph: Graph with Q/DQ.
        value: The float input.
        pixels: What it takes from now on; its type and shape are left to the caller.

    Returns:
        None if it was done, else why it can't be.
    """
    path = _find(graph, value, pixels)
    if isinstance(path, str):
        return path
    options = pixels.images
    channels = path.codes.shape[1]
    scale, mean, std = options.scale, np.array(options.mean), np.array(options.std)
    if channels != (1 if options.channels == "gray" else 3):
        return "it has other channels than the images"
    slopes = np.broadcast_to(scale / std * path.ratio, channels)
    slope = float(slopes.mean())
    if scale <= 0 or float(np.abs(slopes / slope - 1).max()) > _SAME:
        return "std differs between channels"
    zeros = np.broadcast_to(mean / scale, channels)
    border = np.clip(np.rint(zeros), 0, 255)
    pads = list(graph.attribute(path.conv, "pads", (0, 0, 0, 0)))
    if any(pads) and float(np.abs(border - zeros).max()) > 0.5:
        return "no pixel is zero, which pads its border"
    own_border = any(pads) and bool((border != border[0]).any())
    if own_border and graph.opset < SPLIT_OPSET:
        return f"the border needs opset {SPLIT_OPSET}, the model has {graph.opset}"
    zero_point = int(np.clip(np.rint(border.mean()), 0, 255))
    bias = _bias(graph, path, slope, zero_point - zeros)
    if bias is None:
        return "its bias would not fit into int32"
    _rewrite(graph, value, pixels, path, np.float32(slope), zero_point)
    _set_bias(graph, path, bias, (path.step * np.float32(slope)).astype(np.float32))
    if own_border:
        _pad(graph, value, pixels, path.conv, pads, border.astype(np.uint8))
    graph.drop_unread_initializers()
    return None


def _find(graph: Graph, value: Value, pixels: Pixels) -> _Path | str:
    if pixels.dtype != "uint8":
        return "they are signed"
    nodes: list[Node] = []
    order: tuple[int, ...] = _NCHW
    ratio = np.ones(1)
    node = graph.only_reader(value)
    while node is not None and not graph.is_standard(node, "Conv"):
        if graph.is_standard(node, "Transpose"):
            perm = graph.attribute(node, "perm") or (3, 2, 1, 0)
            order = tuple(order[axis] for axis in perm)
        elif graph.is_standard(node, "Mul"):
            factor = graph.array(node.inputs[1])
            if factor is None or factor.size != max(factor.shape[1:2], default=1):
                return "it is multiplied on the way"
            ratio = ratio * factor.astype(np.float64).reshape(-1)
        elif graph.is_standard(node, "QuantizeLinear"):
            if _dtype(graph, node) != "uint8":
                return "it reads no uint8"
        elif not graph.is_standard(node, "DequantizeLinear"):
            return f"{node.op_type} stands before it"
        nodes.append(node)
        node = graph.only_reader(node.outputs[0])
    if node is None or not nodes or not graph.is_standard(nodes[-1], "DequantizeLinear"):
        return "no single quantized convolution reads the input"
    if order != (_NCHW if pixels.images.layout == "NCHW" else _TO_NCHW):
        return "its axes are others than [images] says"
    if graph.attribute(node, "group", 1) != 1:
        return "it has groups"
    if graph.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "it has automatic padding"
    weight = _dequantized(graph, node, 1)
    if weight is None or weight[0].ndim != 4 or weight[1].ndim > 1:
        return "its weight is not in integers"
    if len(node.inputs) > 2 and node.inputs[2] is not None and _dequantized(graph, node, 2) is None:
        return "its bias is not in integers"
    return _Path(nodes, node, weight[0].astype(np.int64), weight[1], ratio)


def _dtype(graph: Graph, quantize: Node) -> str:
    zero = graph.tensor(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    return "uint8" if zero is None else zero.dtype.name.lower()


def _dequantized(
    graph: Graph, conv: Node, index: int
) -> tuple[NDArray[np.integer], NDArray[np.float32]] | None:
    """Codes and scale of a constant in integers with zero points of 0."""
    value = conv.inputs[index]
    node = None if value is None else value.producer()
    if node is None or not graph.is_standard(node, "DequantizeLinear"):
        return None
    codes, scale = graph.array(node.inputs[0]), graph.array(node.inputs[1])
    zero = graph.array(node.inputs[2]) if len(node.inputs) > 2 else None
    if codes is None or scale is None or (zero is not None and zero.any()):
        return None
    if scale.ndim == 1 and (graph.attribute(node, "axis", 1) != 0 or len(scale) != len(codes)):
        return None
    return codes, scale


def _bias(
    graph: Graph, path: _Path, slope: float, missing: NDArray[np.float64]
) -> NDArray[np.int32] | None:
    """The bias in steps of slope times the weight's step, or None where it has no code.

    Args:
        graph: The graph.
        path: The convolution.
        slope: Scale of the data.
        missing: What lies between each channel's zero and the zero point, pixels, float64 [C].
    """
    taps = path.codes.sum(axis=(2, 3), dtype=np.int64)  # [M, C]
    exact = taps @ missing
    found = _dequantized(graph, path.conv, 2) if len(path.conv.inputs) > 2 else None
    if found is not None:
        exact = exact + found[0] * (found[1].astype(np.float64) / (slope * path.step))
    low, high, _ = INTEGERS["int32"]
    codes = np.rint(exact)
    return codes.astype(np.int32) if ((codes >= low) & (codes <= high)).all() else None


def _rewrite(
    graph: Graph, value: Value, pixels: Pixels, path: _Path, slope: np.float32, zero_point: int
) -> None:
    """Put [Transpose], DequantizeLinear in the place of what stood before the convolution."""
    name = value.name or "image"
    current = value
    if pixels.layout == "NHWC":
        turned = graph.insert(
            "Transpose",
            [value],
            before=path.conv,
            attributes={"perm": _TO_NCHW},
            name=f"{name}_nchw",
        )
        current = turned.outputs[0]
        current.type = ir.TensorType(ir.DataType.UINT8)
    dequantize = graph.insert(
        "DequantizeLinear",
        [
            current,
            graph.constant(f"{name}_pixel_scale", np.asarray(slope)),
            graph.constant(f"{name}_pixel_zero_point", np.asarray(zero_point, np.uint8)),
        ],
        before=path.conv,
        name=f"{name}_pixels",
    )
    dequantize.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.set_input(path.conv, 0, dequantize.outputs[0])
    graph.remove_unread(path.nodes)


def _set_bias(
    graph: Graph, path: _Path, codes: NDArray[np.int32], step: NDArray[np.float32]
) -> None:
    name = path.conv.name or "conv"
    step = np.broadcast_to(step, codes.shape).copy()
    dequantize = graph.insert(
        "DequantizeLinear",
        [graph.constant(f"{name}_bias_codes", codes), graph.constant(f"{name}_bias_scale", step)],
        before=path.conv,
        attributes={"axis": 0},
        name=f"{name}_bias",
    )
    dequantize.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    dequantize.outputs[0].shape = ir.Shape(codes.shape)
    old = path.conv.inputs[2] if len(path.conv.inputs) > 2 else None
    graph.set_input(path.conv, 2, dequantize.outputs[0])
    producer = None if old is None else old.producer()
    if producer is not None:
        graph.remove_unread([producer])


def _pad(
    graph: Graph,
    value: Value,
    pixels: Pixels,
    conv: Node,
    pads: list[int],
    border: NDArray[np.uint8],
) -> None:
    """Put each channel's own border around the image, and take the convolution's own away."""
    top, left, bottom, right = pads
    channel = 3 if pixels.layout == "NHWC" else 1
    around = [0, top, left, 0, 0, bottom, right, 0]
    if channel == 1:
        around = [0, 0, top, left, 0, 0, bottom, right]
    readers = [(use.node, use.idx) for use in value.uses()]
    first = readers[0][0]
    split = graph.insert(
        "Split",
        [value],
        before=first,
        attributes={"axis": channel, "num_outputs": len(border)},
        outputs=len(border),
        name=f"{value.name}_channels",
    )
    sizes = graph.constant(f"{value.name}_border", np.array(around, np.int64))
    padded: list[Value | None] = []
    for part, pixel in zip(split.outputs, border, strict=True):
        part.type = ir.TensorType(ir.DataType.UINT8)
        constant = graph.constant(f"{value.name}_border_pixel", np.asarray(pixel))
        node = graph.insert(
            "Pad", [part, sizes, constant], before=first, name=f"{value.name}_padded"
        )
        padded.append(node.outputs[0])
    joined = graph.insert(
        "Concat", padded, before=first, attributes={"axis": channel}, name=f"{value.name}_joined"
    )
    for node, index in readers:
        graph.set_input(node, index, joined.outputs[0])
    graph.set_attribute(conv, "pads", (0, 0, 0, 0))
