"""The pattern of softmax(query key^T * scale + mask) value, and what its operands are made of."""

import math
from dataclasses import dataclass

import numpy as np

from qgraph.graph import Graph, Node, Value
from qgraph.pattern import Match, Pattern, const, one_of, op, var
from qgraph.pipeline import Reject

# Between [batch, heads, length, size] and [batch, length, heads, size], both ways.
_SWAP = (0, 2, 1, 3)
_LAST_TWO, _FROM_SPLIT = (0, 1, 3, 2), (0, 2, 3, 1)


def _scaled(x: Pattern, name: str) -> Pattern:
    """Match x, x * factor or x / divisor."""
    return one_of(
        op.Mul(x, const(f"{name}_factor")),
        op.Div(x, const(f"{name}_divisor")),
        x,
    )


def pattern() -> Pattern:
    """Match attention up to the Reshape that joins its heads."""
    key = _scaled(op.Transpose(_scaled(var("key"), "key"), bind="turned"), "turned")
    scores = _scaled(op.MatMul(_scaled(var("query"), "query"), key, bind="scores"), "scores")
    masked = one_of(op.Add(scores, var("mask")), scores)
    weights = op.Softmax(masked, bind="softmax")
    context = op.MatMul(weights, var("value"), bind="context")
    return op.Reshape(op.Transpose(context, bind="joined"), var("shape"), bind="merged")


@dataclass(frozen=True)
class Core:
    """One attention, with what the contributed operators ask of its operands.

    Attributes:
        query: [batch, heads, length, size].
        key: The same; with `split`, [batch, length, heads, size].
        value: [batch, heads, length, size].
        mask: What is added to the scores, or None.
        heads: Query heads.
        size: Length of a head.
        scale: What scores are multiplied by.
        split: Whether one Transpose of the keys does both, put heads first and turn them.
    """

    query: Value
    key: Value
    value: Value
    mask: Value | None
    heads: int
    size: int
    scale: float
    split: bool

    @property
    def width(self) -> int:
        """Length of all heads together."""
        return self.heads * self.size


def core(m: Match) -> Core | Reject:
    """Check layouts and types of a match."""
    graph = m.graph
    if graph.attribute(m.node("softmax"), "axis", -1) not in (-1, 3):
        return Reject("its Softmax is not over the keys")
    perms = [graph.attribute(m.node(name), "perm") for name in ("turned", "joined")]
    if perms[1] is None or tuple(perms[1]) != _SWAP or perms[0] is None:
        return Reject("its heads are not on the second axis")
    query, value = m.value("query"), m.value("value")
    shapes = [graph.shape(each) or () for each in (query, value)]
    if any(len(shape) != 4 for shape in shapes):
        return Reject("its operands are not known to be [batch, heads, length, size]")
    heads, size = shapes[0][1], shapes[0][3]
    if not isinstance(heads, int) or not isinstance(size, int):
        return Reject("the number or the length of its heads is unknown")
    if shapes[1][3] != size:
        return Reject("its values are not as long as its queries")
    merged = graph.shape(m.root.outputs[0]) or ()
    if len(merged) != 3 or merged[2] != heads * size:
        return Reject("its heads are not joined to [batch, length, heads * size]")
    split = tuple(perms[0]) == _FROM_SPLIT
    if not split and tuple(perms[0]) != _LAST_TWO:
        return Reject("its keys are not transposed for the product")
    scale = _scale(m)
    if isinstance(scale, Reject):
        return scale
    mask = m.value("mask") if "mask" in m else None
    return Core(query, m.value("key"), value, mask, heads, size, scale, split)


def _scale(m: Match) -> float | Reject:
    scale = 1.0
    for name, value in m.values.items():
        kind = name.rpartition("_")[2]
        if kind in ("factor", "divisor"):
            number = m.graph.scalar(value)
            if not number or not math.isfinite(number):
                return Reject("what its scores are scaled by is not one number")
            scale *= number if kind == "factor" else 1 / number
    return scale


def unshared(graph: Graph, value: Value) -> Value:
    """Step back over the repetition of key or value heads for the query heads that share them.

    Recognised is Unsqueeze or Reshape to [batch, heads, 1, ...], Expand and Reshape, as
    `repeat_kv` is exported.
    """
    merge = _made_by(graph, value, "Reshape")
    spread = _made_by(graph, merge.inputs[0], "Expand") if merge is not None else None
    group = _made_by(graph, spread.inputs[0], "Unsqueeze", "Reshape") if spread else None
    if group is None or spread is None:
        return value
    source, after = graph.shape(group.inputs[0]), graph.shape(spread.outputs[0])
    before, whole = graph.shape(group.outputs[0]), graph.shape(value)
    if not source or not before or not after or not whole:
        return value
    if (len(source), len(before), len(after), len(whole)) != (4, 5, 5, 4):
        return value
    many, times = source[1], after[2]
    if not isinstance(many, int) or not isinstance(times, int) or whole[1] != many * times:
        return value
    kept = before[1] == many == after[1] and before[2] == 1
    kept = kept and source[3] == before[4] == after[4] == whole[3]
    return group.inputs[0] if kept and group.inputs[0] is not None else value


def joined(graph: Graph, value: Value, width: int, before: Node, *, split: bool = False) -> Value:
    """Return heads [batch, heads, length, size] as [batch, length, width].

    Where they were split from just that, it is what they were split from.

    Args:
        graph: The graph.
        value: The heads; with `split`, [batch, length, heads, size].
        width: Of all heads together.
        before: Node in front of which new ones stand.
        split: Whether the heads are on the third axis.
    """
    turn = None if split else _made_by(graph, value, "Transpose")
    if turn is not None and _swaps(graph, turn):
        return joined(graph, _first(turn), width, before, split=True)
    if not split:
        turn = graph.insert("Transpose", [value], before=before, attributes={"perm": _SWAP})
        value = turn.outputs[0]
    cut = _made_by(graph, value, "Reshape")
    if cut is not None and _splits(graph, cut, width):
        return _first(cut)
    shape = graph.constant("heads_joined", np.array([0, 0, width], np.int64))
    return graph.insert("Reshape", [value, shape], before=before).outputs[0]


def was_split(graph: Graph, value: Value, width: int, *, split: bool = False) -> bool:
    """Whether `joined` has nothing to add."""
    if not split:
        turn = _made_by(graph, value, "Transpose")
        if turn is None or not _swaps(graph, turn):
            return False
        value = _first(turn)
    cut = _made_by(graph, value, "Reshape")
    return cut is not None and _splits(graph, cut, width)


def _swaps(graph: Graph, node: Node) -> bool:
    return tuple(graph.attribute(node, "perm") or ()) == _SWAP


def _first(node: Node) -> Value:
    value = node.inputs[0]
    assert value is not None, "these operators have a first input"
    return value


def _splits(graph: Graph, split: Node, width: int) -> bool:
    """Whether a Reshape from [batch, length, width] only splits the last axis.

    Of the first two axes one could be merged into the other: both sides' must be the same.
    """
    shape, source = graph.shape(split.outputs[0]) or (), graph.shape(split.inputs[0]) or ()
    if len(shape) != 4 or len(source) != 3:
        return False
    wanted = graph.array(split.inputs[1])
    copied = wanted is not None and len(wanted) == 4 and not wanted[:2].any()
    copied = copied and not graph.attribute(split, "allowzero", 0)
    same = shape[:2] == source[:2] and None not in source[:2]
    heads, size = shape[2:]
    parts = isinstance(heads, int) and isinstance(size, int) and heads * size == width
    return parts and (copied or same)


def _made_by(graph: Graph, value: Value | None, *op_types: str) -> Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and graph.is_standard(node, *op_types) else None
