"""What the fusions of LayerNormalization and RMSNormalization share."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.pattern import Match, Pattern, const, maybe, one_of, op, scalar, var
from qgraph.pipeline import Reject

# float64 is left out: both operators compute their statistics in float32 (`stash_type`).
_HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_TYPES = {ir.DataType.FLOAT, *_HALVES}

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Core:
    """The checked middle of a normalisation.

    Attributes:
        x: What is normalised; where the statistics stood between Casts, the value before them.
        axis: First normalised axis, counted from the back.
        dims: The normalised axes' lengths, None where unknown.
        epsilon: Added to the variance or mean square.
        dtype: Element type of `x`, the scale and the result.
    """

    x: Value
    axis: int
    dims: Shape
    epsilon: float
    dtype: ir.DataType

    def attributes(self) -> dict[str, int | float]:
        """Return the attributes of the operator that is written."""
        return {"axis": self.axis, "epsilon": self.epsilon}


def source() -> Pattern:
    """Match what is normalised: value `x`, or value `half` behind a Cast that nobody else reads."""
    return one_of(op.Cast(var("half"), bind="widen"), var("x"))


def over_root(numerator: Pattern, mean_square: Pattern) -> Pattern:
    """Match numerator / sqrt(mean_square + epsilon) as exporters write it."""
    inside = op.Add(mean_square, const("epsilon"))
    root = op.Sqrt(inside)
    inverse = one_of(op.Reciprocal(root), op.Div(scalar(1.0), root), op.Pow(inside, scalar(-0.5)))
    return one_of(op.Div(numerator, root), op.Mul(numerator, inverse))


def mean_of_square(x: Pattern) -> Pattern:
    """Match the mean of x * x; node `mean_square`."""
    square = one_of(op.Pow(x, scalar(2.0)), op.Mul(x, x))
    return op.ReduceMean(square, maybe("square_axes"), bind="mean_square")


def narrowed(pattern: Pattern) -> Pattern:
    """Match `pattern`, or a Cast (node `narrow`) of it."""
    return one_of(op.Cast(pattern, bind="narrow"), pattern)


def core(m: Match) -> Core | Reject:
    """Check what both operators need: last axes, kept dimensions, element types, epsilon."""
    graph = m.graph
    x = m.node("widen").outputs[0] if "widen" in m else m.value("x")
    rank = graph.rank(x)
    means = [m.node(name) for name in ("mean_square", "mean") if name in m]
    found = {_last_axes(graph, node, rank) for node in means}
    count = found.pop()
    if found or not count:
        return Reject("the mean is not known to be over the last axes")
    if not all(graph.attribute(node, "keepdims", 1) for node in means):
        return Reject("the mean drops its axes")
    epsilon = m.array("epsilon")
    if epsilon.size != 1 or epsilon.ndim > (rank or count):
        return Reject("epsilon is not one number")
    dtype = _tensor_dtype(graph, m.value("epsilon"))
    if dtype not in _TYPES:
        return Reject(f"the operator does not compute in {dtype.name.lower()}")
    if "narrow" in m:
        before = _before_cast(m, x)
        to = graph.attribute(m.node("narrow"), "to")
        half = None if before is None else before.dtype
        if before is None or half not in _HALVES or half != to or dtype != ir.DataType.FLOAT:
            return Reject("the Cast behind the statistics does not undo one before them")
        x, dtype = before, half
    shape = graph.shape(x) or (None,) * count
    dims = tuple(d if isinstance(d, int) else None for d in shape[-count:])
    return Core(x, -count, dims, float(epsilon.reshape(()).astype(np.float64)), dtype)


def scale_of_ones(m: Match, found: Core) -> Value | Reject:
    """Return a scale for an operator that must have one, where the formula has none."""
    shape = tuple(d for d in found.dims if d is not None)
    if len(shape) != len(found.dims):
        return Reject("it has no scale, and the length of the normalised axes is unknown")
    ones = np.ones(shape, _NUMPY[found.dtype])
    return m.graph.constant(f"{m.root.name}_scale", ones)


def parameter(m: Match, name: str, found: Core) -> NDArray[Any] | Reject:
    """Return a scale or bias as an array of exactly the normalised axes' shape.

    A known length must fit. Where it is unknown, the parameter's own is taken.
    """
    array = m.array(name)
    if _tensor_dtype(m.graph, m.value(name)) != found.dtype:
        return Reject(f"the {name} has another element type than the input")
    count = len(found.dims)
    extra = array.ndim - count
    if extra > 0:
        rank = m.graph.rank(found.x)
        if any(d != 1 for d in array.shape[:extra]) or rank is None or array.ndim > rank:
            return Reject(f"the {name} varies along, or adds, axes that are not normalised")
        array = array.reshape(array.shape[extra:])
    own = (1,) * -extra + array.shape
    shape = tuple(
        mine if wanted is None and mine != 1 else wanted
        for mine, wanted in zip(own, found.dims, strict=True)
    )
    whole = tuple(d for d in shape if d is not None)
    if len(whole) != count:
        return Reject(f"the length that the {name} is repeated to is unknown")
    if any(mine not in (1, wanted) for mine, wanted in zip(own, whole, strict=True)):
        return Reject(f"the {name} does not have the length of the normalised axes")
    return np.ascontiguousarray(np.broadcast_to(array, whole))


def as_value(m: Match, name: str, array: NDArray[Any]) -> Value:
    """Return a matched constant, or a new one where `array` has another shape."""
    old = m.value(name)
    if m.array(name).shape == array.shape:
        return old
    return m.graph.constant(f"{old.name}_{name}", array)


_NUMPY: dict[ir.DataType, Any] = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.BFLOAT16: ml_dtypes.bfloat16,
}


def _before_cast(m: Match, x: Value) -> Value | None:
    if "half" in m:
        return m.value("half")
    producer = x.producer()
    if producer is None or not m.graph.is_standard(producer, "Cast"):
        return None
    return producer.inputs[0]


def _tensor_dtype(graph: Graph, value: Value) -> ir.DataType:
    tensor = graph.tensor(value)
    assert tensor is not None, "the pattern asked for a constant"
    return tensor.dtype


def _last_axes(graph: Graph, mean: Node, rank: int | None) -> int | None:
    """Return how many last axes a ReduceMean is over; None if it is over others, or unknown."""
    axes = graph.attribute(mean, "axes")
    if len(mean.inputs) > 1 and mean.inputs[1] is not None:
        array = graph.array(mean.inputs[1])
        axes = None if array is None else array.reshape(-1).tolist()
        if axes is None:
            return None
    if not axes:
        return None if graph.attribute(mean, "noop_with_empty_axes", 0) else rank
    if any(a >= 0 for a in axes) and rank is None:
        return None
    negative = {int(a) if a < 0 else int(a) - (rank or 0) for a in axes}
    return len(negative) if negative == set(range(-len(negative), 0)) else None
