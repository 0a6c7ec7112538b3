"""What the fusions of activation functions share: products in any order, and when to refuse."""

from collections.abc import Mapping

import onnx_ir as ir

from qgraph.graph import Attribute, Graph, Node, Value
from qgraph.passes.fusions._constants import standing_in
from qgraph.pattern import Match, OneOf, Pattern, one_of, op, scalar
from qgraph.pipeline import Reject

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
DOUBLE, BFLOAT16 = ir.DataType.DOUBLE, ir.DataType.BFLOAT16


def product(*factors: Pattern, by: float) -> Pattern:
    """Match `by` times the factors, multiplied in any order.

    The constant may stand as `Mul(..., by)` or as `Div(..., 1 / by)`.
    """
    if not factors[1:]:
        return _scaled(factors[0], by)
    found = list(_scaled(_trees(factors), by).choices)
    for left, right in _splits(factors):
        found += [op.Mul(product(*left, by=by), _trees(right))]
        found += [op.Mul(_trees(left), product(*right, by=by))]
    return one_of(*found)


def _scaled(pattern: Pattern, by: float) -> OneOf:
    return one_of(op.Mul(pattern, scalar(by)), op.Div(pattern, scalar(1 / by)))


def _trees(factors: tuple[Pattern, ...]) -> Pattern:
    """Match the factors' product; which operand is the left one the matcher tries by itself."""
    if not factors[1:]:
        return factors[0]
    return one_of(*(op.Mul(_trees(left), _trees(right)) for left, right in _splits(factors)))


def _splits(
    factors: tuple[Pattern, ...],
) -> list[tuple[tuple[Pattern, ...], tuple[Pattern, ...]]]:
    """Return the ways to part the factors in two, the first one always on the left."""
    found = []
    for picks in range(1, 2 ** len(factors) - 1, 2):
        left = tuple(f for i, f in enumerate(factors) if picks >> i & 1)
        right = tuple(f for i, f in enumerate(factors) if not picks >> i & 1)
        found.append((left, right))
    return found


def element_type(m: Match, x: Value) -> ir.DataType | None:
    """Return the type that the matched arithmetic computes in; None if nothing says it."""
    known = [x.dtype, m.root.outputs[0].dtype]
    for node in m.nodes:
        if node.op_type in {"Add", "Sub", "Mul", "Div"}:
            known += [_dtype(m.graph, value) for value in node.inputs]
    return next((each for each in known if each is not None), None)


def refusal(m: Match, x: Value, op_type: str, since: Mapping[ir.DataType, int]) -> Reject | None:
    """Say why the match can't become one `op_type` of `x`, or return None.

    Args:
        m: The match; its constants are all of one element.
        x: The input.
        op_type: The operator to write.
        since: By element type, the first opset at which the operator takes it.
    """
    dtype = element_type(m, x)
    if dtype is not None and dtype not in since:
        return Reject(f"{op_type} does not run on {dtype.name.lower()}")
    first = min(since.values()) if dtype is None else since[dtype]
    if m.graph.opset < first:
        return Reject(needs_opset(op_type, first, m.graph.opset))
    if _may_grow(m, x):
        return Reject("a constant has more axes than the input may have")
    return None


def needs_opset(op_type: str, needed: int, present: int) -> str:
    """Return the reason of a refusal for want of an operator."""
    return f"{op_type} needs opset {needed}, the model has {present}"


def clip_bounds(graph: Graph, clip: Node) -> tuple[float, float] | None:
    """Return the bounds of a Clip, from its attributes (opset below 11) or its constant inputs.

    None where a bound is missing or not known.
    """
    if graph.opset < 11:
        bounds = [graph.attribute(clip, "min"), graph.attribute(clip, "max")]
    else:
        inputs = [*clip.inputs, None, None]
        bounds = [graph.scalar(inputs[1]), graph.scalar(inputs[2])]
    low, high = bounds
    return None if low is None or high is None else (float(low), float(high))


def write(
    m: Match, op_type: str, x: Value, attributes: Mapping[str, Attribute] | None = None
) -> Value:
    """Add the operator that takes the place of the match, and return its output."""
    node = m.graph.insert(
        op_type, [x], before=m.root, attributes=attributes, like=m.root.outputs[0]
    )
    return standing_in(node.outputs[0], m.root)


def _dtype(graph: Graph, value: Value | None) -> ir.DataType | None:
    if value is None or value.dtype is not None:
        return None if value is None else value.dtype
    tensor = graph.tensor(value)
    return None if tensor is None else tensor.dtype


def _may_grow(m: Match, x: Value) -> bool:
    """Whether a constant's shape, like [1, 1, 1], may add axes to the result."""
    rank = m.graph.rank(x) or 0
    shapes = [
        tensor.shape
        for node in m.nodes
        for tensor in map(m.graph.tensor, node.inputs)
        if tensor is not None
    ]
    return any(len(shape) > rank for shape in shapes)
