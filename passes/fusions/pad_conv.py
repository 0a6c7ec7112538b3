"""Pad in front of a Conv or pooling becomes the operator's own padding."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from qgraph.graph import Graph, Node, Value
from qgraph.pattern import Match, Pattern, maybe, op, var
from qgraph.pipeline import Fusion, Reject

# Operators without a negative result, whatever their input (NaN aside, which stays NaN).
_NEVER_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softplus", "Softmax", "Abs", "Exp")


@dataclass(frozen=True)
class PadConv(Fusion):
    """Fold a constant Pad into the Conv, AveragePool or MaxPool that reads it.

    Before:
        y = Pad <mode = "constant"> (x, pads)
        z = Conv <pads = [0, 0, 0, 0]> (y, weight)

    After:
        z = Conv <pads> (x, weight)

    When:
        Constant, non-negative pads along spatial axes only (as `pads` for every axis, for some
        axes, or as the attribute of opset 10 and before). Conv and AveragePool pad with zero, so
        the Pad must; AveragePool then counts padding (count_include_pad = 1), and any padding of
        its own must have been counted too. MaxPool pads with minus infinity: the Pad must, or pad
        with zero what is never negative (behind Relu, Sigmoid, Clip from 0, ...).

    Leaves alone:
        Modes other than `constant`; computed pads or values; other values; pads on batch or
        channels; negative pads; auto_pad SAME, which looks at the padded size; pooling with
        ceil_mode or with padding as wide as its kernel, which ONNX forbids; a Pad with a second
        reader; ConvTranspose, whose pads crop.

    Numerics:
        Exact: the same products and sums.

    Source:
        https://onnx.ai/onnx/operators/onnx__Pad.html, onnx__Conv.html, onnx__AveragePool.html
        and onnx__MaxPool.html beside it.
    """

    name: ClassVar[str] = "pad_conv"
    pattern: ClassVar[Pattern] = op.any_of("Conv", "AveragePool", "MaxPool")(
        op.Pad(var("x"), maybe("pads"), maybe("value"), maybe("axes"), bind="pad"), open=True
    )

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Add the pads to the reader's own, in place."""
        pad, reader = m.node("pad"), m.root
        spatial = _spatial_axes(graph, reader)
        if spatial is None:
            return Reject("the number of spatial axes is unknown")
        pads = _spatial_pads(graph, pad, spatial)
        if isinstance(pads, Reject):
            return pads
        auto = graph.attribute(reader, "auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            return Reject(f"auto_pad {auto} depends on the padded size")
        none = (0,) * (2 * spatial)
        own = none if auto == "VALID" else tuple(graph.attribute(reader, "pads", none))
        total = [a + b for a, b in zip(own, pads, strict=True)]
        wrong = _wrong_value(graph, reader, pad, any(own)) or _wrong_window(graph, reader, total)
        if wrong:
            return Reject(wrong)
        graph.set_input(reader, 0, m.value("x"))
        graph.set_attribute(reader, "auto_pad", None)
        graph.set_attribute(reader, "pads", total)
        if reader.op_type == "AveragePool":
            graph.set_attribute(reader, "count_include_pad", 1)
        return None


def _spatial_axes(graph: Graph, reader: Node) -> int | None:
    kernel = graph.attribute(reader, "kernel_shape")
    if kernel is not None:
        return len(kernel)
    rank = graph.rank(reader.inputs[1]) if reader.op_type == "Conv" else None
    return None if rank is None else rank - 2


def _spatial_pads(graph: Graph, pad: Node, spatial: int) -> tuple[int, ...] | Reject:
    """Return the pads as Conv writes them: begins, then ends, of the spatial axes."""
    if graph.attribute(pad, "mode", "constant") != "constant":
        return Reject("the Pad's mode is not constant")
    rank = spatial + 2
    given = graph.attribute(pad, "pads")
    if given is None:
        array = graph.array(pad.inputs[1]) if len(pad.inputs) > 1 else None
        if array is None:
            return Reject("the pads are not constant")
        given = array.reshape(-1).tolist()
    axes = list(range(rank))
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        chosen = graph.array(pad.inputs[3])
        if chosen is None:
            return Reject("the Pad's axes are not constant")
        axes = [int(a) % rank for a in chosen.reshape(-1).tolist()]
    if len(given) != 2 * len(axes):
        return Reject("the pads do not fit the number of axes")
    begins, ends = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        begins[axis], ends[axis] = int(given[place]), int(given[place + len(axes)])
    if min(*begins, *ends) < 0:
        return Reject("a pad is negative")
    if any(begins[:2]) or any(ends[:2]):
        return Reject("it pads the batch or the channels")
    return (*begins[2:], *ends[2:])


def _wrong_value(graph: Graph, reader: Node, pad: Node, pads_itself: bool) -> str | None:
    """Return what is wrong with the padded value for this reader, or None."""
    value: float | None = graph.attribute(pad, "value", 0.0)
    if len(pad.inputs) > 2 and pad.inputs[2] is not None:
        value = graph.scalar(pad.inputs[2])
    if value is None:
        return "the padded value is not constant"
    if reader.op_type == "MaxPool":
        if value == -math.inf or (value == 0 and _never_negative(graph, pad.inputs[0])):
            return None
        return "MaxPool pads with minus infinity, and the Pad's value may differ from that"
    if value != 0:
        return f"{reader.op_type} pads with zero, the Pad with {value:g}"
    counts = reader.op_type == "Conv" or graph.attribute(reader, "count_include_pad", 0)
    if pads_itself and not counts:
        return "the AveragePool does not count its own padding, but would count the Pad's"
    return None


def _wrong_window(graph: Graph, reader: Node, pads: list[int]) -> str | None:
    """Return why a pooling can't take these pads, or None; Conv takes any."""
    if reader.op_type == "Conv":
        return None
    if graph.attribute(reader, "ceil_mode", 0):
        return "ceil_mode lets the last window reach over the padding"
    kernel: tuple[int, ...] = tuple(graph.attribute(reader, "kernel_shape"))
    if any(p >= k for p, k in zip(pads, kernel * 2, strict=True)):
        return "the padding would be as wide as the kernel"
    if any(d != 1 for d in graph.attribute(reader, "dilations", ())):
        return "a window with dilation may lie in the padding alone"
    return None


def _never_negative(graph: Graph, value: Value | None) -> bool:
    node: Any = None if value is None else value.producer()
    if node is None or not graph.is_standard(node):
        return False
    if node.op_type == "Clip":
        low = graph.attribute(node, "min")
        if low is None and len(node.inputs) > 1:
            low = graph.scalar(node.inputs[1])
        return low is not None and float(low) >= 0
    return node.op_type in _NEVER_NEGATIVE
