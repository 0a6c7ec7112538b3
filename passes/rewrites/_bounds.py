"""What codes can represent, and cutting values off there before other codes can say more."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.encoding import INTEGERS
from qgraph.graph import Graph, Node, Value
from qgraph.passes.plan import clip_bounds
from qgraph.passes.rewrites._qdq import Constants, Parameters

# Ends closer than this, relative, are the same: float16 scales have 11 bits.
_SAME = 2.0**-10
# Operators whose results are never negative.
_POSITIVE = ("Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Sqrt")
_CLIP_INPUTS_SINCE = 11


@dataclass(frozen=True, eq=False)
class Bounds:
    """Lowest and highest value that codes can represent, one pair a scale.

    Attributes:
        low: float64, shape of the scale.
        high: The same.
        axis: Axis along which they differ; None for one pair.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    axis: int | None

    @classmethod
    def of(cls, found: Parameters) -> "Bounds":
        """Return the bounds of codes with these parameters."""
        first, last, _ = INTEGERS[found.dtype]
        step = found.scale.astype(np.float64)
        return cls((first - found.zero_point) * step, (last - found.zero_point) * step, found.axis)

    def inside(self, other: "Bounds") -> tuple[bool, bool]:
        """Whether the low ends, and the high ones, lie inside of another's, somewhere."""
        low = self.low > other.low * (1 - _SAME)
        high = self.high < other.high * (1 - _SAME)
        return bool(low.any()), bool(high.any())


def clip_refusal(graph: Graph, node: Node, bounds: Bounds) -> str | None:
    """Say why what `node` reads can't be cut off, or None."""
    value = node.inputs[0]
    if bounds.axis is not None and graph.rank(value) is None:
        return "it has a scale a channel and its input has no known rank"
    if _element_type(graph, value) is None:
        return "the type of its input is unknown"
    return None


def clip(constants: Constants, node: Node, bounds: Bounds, sides: tuple[bool, bool]) -> None:
    """Cut off what `node` reads at the low and high ends that `sides` names."""
    graph, value = constants.graph, node.inputs[0]
    assert value is not None
    below, above = sides
    if below and _never_below(graph, value, float(bounds.low.max())):
        below = False
    if not below and not above:
        return
    dtype = _element_type(graph, value)
    assert dtype is not None
    low, high = (
        _shaped(end, bounds.axis, graph.rank(value)).astype(dtype) if wanted else None
        for end, wanted in ((bounds.low, below), (bounds.high, above))
    )
    known = graph.array(value)
    if known is not None:
        cut = np.clip(known, low, high).astype(dtype)
        graph.set_input(node, 0, graph.constant(f"{value.name}_clipped", cut))
        return
    graph.set_input(node, 0, _inserted(constants, node, value, low, high))


def _inserted(
    constants: Constants,
    node: Node,
    value: Value,
    low: NDArray[Any] | None,
    high: NDArray[Any] | None,
) -> Value:
    graph, hint = constants.graph, value.name or "value"
    if high is None and low is not None and not low.any():
        return graph.insert("Relu", [value], before=node, name=f"{hint}_relu", like=value).outputs[
            0
        ]
    ends = [
        None if end is None else constants.get(f"{hint}_{word}", end)
        for word, end in (("low", low), ("high", high))
    ]
    scalar = all(end is None or end.ndim == 0 for end in (low, high))
    if scalar and graph.opset >= _CLIP_INPUTS_SINCE:
        made = graph.insert("Clip", [value, *ends], before=node, name=f"{hint}_clip", like=value)
        return made.outputs[0]
    for op_type, end in zip(("Max", "Min"), ends, strict=True):
        if end is not None:
            made = graph.insert(
                op_type, [value, end], before=node, name=f"{hint}_{op_type}", like=value
            )
            value = made.outputs[0]
    return value


def _shaped(end: NDArray[np.float64], axis: int | None, rank: int | None) -> NDArray[np.float64]:
    """Return ends so that they broadcast along `axis` of a tensor with `rank` axes."""
    if axis is None or rank is None:
        return end.reshape(())
    return end.reshape((-1,) + (1,) * (rank - 1 - axis % rank))


def _never_below(graph: Graph, value: Value, low: float) -> bool:
    """Whether what made `value` keeps it at `low` or above; `low` is never above 0."""
    producer = value.producer()
    if producer is None or not graph.is_standard(producer):
        return False
    if producer.op_type in _POSITIVE:
        return True
    bounds = clip_bounds(graph, producer)
    return bounds is not None and bounds[0] >= low


def _element_type(graph: Graph, value: Value | None) -> np.dtype[Any] | None:
    tensor = graph.tensor(value)
    dtype = tensor.dtype if tensor is not None else value.dtype if value is not None else None
    return None if dtype is None else np.dtype(dtype.numpy())
