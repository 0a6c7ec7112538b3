"""Nodes that return one of their inputs as it is: one short rule an operator."""

from collections.abc import Callable

import numpy as np

from qgraph.graph import Graph, Node, Value
from qgraph.passes.cleanup._shapes import has, ints, same_shape, same_shape_if_same_size

_Rule = Callable[[Graph, Node], Value | None]

# Ends at or above this mean "to the end" in a Slice; exporters write INT32_MAX or INT64_MAX.
_TO_THE_END = 2**31 - 1


def passed_through(graph: Graph, node: Node) -> Value | None:
    """Return the input that the node's first output always equals, or None."""
    rule = _RULES.get(node.op_type)
    if rule is None or node.domain or not node.inputs:
        return None
    return rule(graph, node)


def _identity(graph: Graph, node: Node) -> Value | None:
    return node.inputs[0]


def _single(graph: Graph, node: Node) -> Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _dropout(graph: Graph, node: Node) -> Value | None:
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        return None
    if Graph.attribute(node, "is_test", 1) == 0:
        return None
    if has(node, 2) and graph.scalar(node.inputs[2]) != 0:
        return None
    return node.inputs[0]


def _cast(graph: Graph, node: Node) -> Value | None:
    source = node.inputs[0]
    return source if source is not None and source.dtype == node.attributes["to"].value else None


def _cast_like(graph: Graph, node: Node) -> Value | None:
    source, like = node.inputs[0], node.inputs[1]
    if source is None or like is None or source.dtype is None:
        return None
    return source if source.dtype == like.dtype else None


def _slice(graph: Graph, node: Node) -> Value | None:
    starts, ends = ints(graph, node, 1, "starts"), ints(graph, node, 2, "ends")
    if starts is None or ends is None:
        return None
    axes = ints(graph, node, 3, "axes")
    if axes is None:
        if has(node, 3):
            return None
        axes = tuple(range(len(starts)))
    steps = ints(graph, node, 4, "steps") if has(node, 4) else (1,) * len(starts)
    shape = graph.shape(node.inputs[0])
    if steps is None or any(step != 1 for step in steps):
        return None
    if not len(starts) == len(ends) == len(axes):
        return None
    for start, end, axis in zip(starts, ends, axes, strict=True):
        dim = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        if start != 0 and not (isinstance(dim, int) and start <= -dim):
            return None
        if end < (min(dim, _TO_THE_END) if isinstance(dim, int) else _TO_THE_END):
            return None
    return node.inputs[0]


def _pad(graph: Graph, node: Node) -> Value | None:
    pads = ints(graph, node, 1, "pads")
    return node.inputs[0] if pads is not None and not any(pads) else None


def _reshape(graph: Graph, node: Node) -> Value | None:
    source = node.inputs[0]
    if same_shape_if_same_size(graph, source, node.outputs[0]):
        return source
    target, shape = ints(graph, node, 1, "shape"), graph.shape(source)
    if target is None or shape is None or len(target) != len(shape):
        return None
    copies = not Graph.attribute(node, "allowzero", 0)
    open_axes = 0
    for wanted, dim in zip(target, shape, strict=True):
        if wanted == 0 and copies:
            continue
        if dim == 0 or (wanted != -1 and isinstance(dim, int) and wanted != dim):
            return None
        open_axes += wanted != dim
    return source if open_axes <= 1 else None


def _expand(graph: Graph, node: Node) -> Value | None:
    source = node.inputs[0]
    if same_shape(graph, source, node.outputs[0]):
        return source
    target, shape = ints(graph, node, 1, "shape"), graph.shape(source)
    if target is None or shape is None or len(target) > len(shape):
        return None
    tail = shape[len(shape) - len(target) :]
    same = all(wanted in (1, dim) for wanted, dim in zip(target, tail, strict=True))
    return source if same else None


def _tile(graph: Graph, node: Node) -> Value | None:
    repeats = ints(graph, node, 1, "repeats")
    return node.inputs[0] if repeats and all(n == 1 for n in repeats) else None


def _transpose(graph: Graph, node: Node) -> Value | None:
    perm = Graph.attribute(node, "perm")
    if perm is None:
        rank = graph.rank(node.inputs[0])
        return node.inputs[0] if rank is not None and rank < 2 else None
    return node.inputs[0] if tuple(perm) == tuple(range(len(perm))) else None


def _flatten(graph: Graph, node: Node) -> Value | None:
    if graph.rank(node.inputs[0]) != 2 or Graph.attribute(node, "axis", 1) not in (1, -1):
        return None
    return node.inputs[0]


def _unsqueeze(graph: Graph, node: Node) -> Value | None:
    return node.inputs[0] if ints(graph, node, 1, "axes") == () else None


def _clip(graph: Graph, node: Node) -> Value | None:
    bounded = has(node, 1) or has(node, 2) or node.attributes
    return None if bounded else node.inputs[0]


def _reduce(graph: Graph, node: Node) -> Value | None:
    if not Graph.attribute(node, "noop_with_empty_axes", 0):
        return None
    empty = not has(node, 1) or ints(graph, node, 1, "axes") == ()
    return node.inputs[0] if empty and "axes" not in node.attributes else None


def _inverse(graph: Graph, node: Node) -> Value | None:
    """Not(Not(x)) and Neg(Neg(x)) are x."""
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    if producer is None or producer.op_type != node.op_type or producer.domain:
        return None
    return producer.inputs[0]


def _idempotent(graph: Graph, node: Node) -> Value | None:
    """Relu(Relu(x)) is Relu(x)."""
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    if producer is None or producer.op_type != node.op_type or producer.domain:
        return None
    return source


def _neutral(number: float, either_side: bool) -> _Rule:
    """Build the rule for an operator with a neutral element."""

    def rule(graph: Graph, node: Node) -> Value | None:
        sides = ((0, 1), (1, 0)) if either_side else ((0, 1),)
        for kept, other in sides:
            if _keeps(graph, node, kept, other, number):
                return node.inputs[kept]
        return None

    return rule


def _keeps(graph: Graph, node: Node, kept: int, other: int, number: float) -> bool:
    source, constant = node.inputs[kept], graph.tensor(node.inputs[other])
    if source is None or constant is None or not _broadcasts_into(graph, source, node, other):
        return False
    array = constant.numpy()
    return array.dtype.kind != "O" and bool(np.all(array == number))


def _broadcasts_into(graph: Graph, source: Value, node: Node, other: int) -> bool:
    """Whether the operand `other` leaves the shape of `source` as it is."""
    shape, small = graph.shape(source), graph.shape(node.inputs[other])
    if small == ():
        return True
    if shape is None or small is None or len(small) > len(shape):
        return False
    tail = shape[len(shape) - len(small) :]
    return all(n == 1 or n == dim for n, dim in zip(small, tail, strict=True))


_RULES: dict[str, _Rule] = {
    "Abs": _idempotent,
    "Add": _neutral(0, either_side=True),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _idempotent,
    "Clip": _clip,
    "Concat": _single,
    "Div": _neutral(1, either_side=False),
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _idempotent,
    "Identity": _identity,
    "Max": _single,
    "Mean": _single,
    "Min": _single,
    "Mul": _neutral(1, either_side=True),
    "Neg": _inverse,
    "Not": _inverse,
    "Pad": _pad,
    "Pow": _neutral(1, either_side=False),
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceProd": _reduce,
    "ReduceSum": _reduce,
    "Relu": _idempotent,
    "Reshape": _reshape,
    "Round": _idempotent,
    "Sign": _idempotent,
    "Slice": _slice,
    "Sub": _neutral(0, either_side=False),
    "Sum": _single,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
