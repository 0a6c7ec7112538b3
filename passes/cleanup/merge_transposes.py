"""Chains of nodes that only rearrange: two Transposes become one, inverse pairs go away."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qgraph.context import Context
from qgraph.graph import Graph, Node, Value
from qgraph.passes.cleanup._shapes import (
    compose,
    has,
    ints,
    replaceable,
    same_shape_if_same_size,
)
from qgraph.pipeline import Pass, PassReport

# Operators that keep the elements and their order, and change the shape alone.
_RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class MergeTransposes(Pass):
    """Merge neighbours that only rearrange elements, and drop pairs that undo each other.

    Before:
        a = Transpose <perm = [0, 2, 3, 1]> (x)
        b = Transpose <perm = [0, 3, 1, 2]> (a)
        c = Unsqueeze(b, [0])
        y = Reshape(c, [-1, 8])

    After:
        y = Reshape(x, [-1, 8])

    When:
        Transpose behind Transpose; Reshape to a constant shape behind Reshape, Squeeze,
        Unsqueeze or Flatten; any two of these four after which the shape is what it was;
        Squeeze behind Unsqueeze of the same axes and the other way round. The first node stays
        where others read it. Inside subgraphs too.

    Leaves alone:
        Reshape whose constant shape copies (0) an axis of the value in between, where that axis
        has no known size; a shape that is computed; a pair between a graph input and a graph
        output.

    Numerics:
        Exact: no number is computed.

    Source:
        https://onnx.ai/onnx/operators/onnx__Transpose.html,
        https://onnx.ai/onnx/operators/onnx__Reshape.html.
    """

    name: ClassVar[str] = "merge_transposes"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Merge in one sweep, first nodes first, so that chains of any length become one node."""
        report = PassReport()
        for node in graph.walk():
            rule = _RULES.get(node.op_type)
            if rule is None or node.domain or node.inputs[0] is None:
                continue
            first = node.inputs[0].producer()
            if first is None or first.domain or first.inputs[:1] in ((), (None,)):
                continue
            where = f"{first.op_type} {first.name}, {node.op_type} {node.name}"
            if rule(graph, first, node):
                report.did(where)
                graph.remove_unread([first])
        return report


def _merge_transpose(graph: Graph, first: Node, second: Node) -> bool:
    if first.op_type != "Transpose":
        return False
    one, two = _perm(graph, first), _perm(graph, second)
    source = first.inputs[0]
    if one is None or two is None or len(one) != len(two) or source is None:
        return False
    merged = compose(one, two)
    if merged == tuple(range(len(merged))) and _bypass(graph, second, source):
        return True
    graph.set_input(second, 0, source)
    graph.set_attribute(second, "perm", merged)
    return True


def _perm(graph: Graph, node: Node) -> tuple[int, ...] | None:
    perm = Graph.attribute(node, "perm")
    if perm is not None:
        return tuple(perm)
    rank = graph.rank(node.inputs[0])
    return None if rank is None else tuple(reversed(range(rank)))


def _merge_reshape(graph: Graph, first: Node, second: Node) -> bool:
    if _undo(graph, first, second):
        return True
    source = first.inputs[0]
    if first.op_type not in _RESHAPING or source is None:
        return False
    target = ints(graph, second, 1, "shape") if has(second, 1) else None
    if target is None:
        return False
    resolved = list(target)
    if not Graph.attribute(second, "allowzero", 0):
        between = graph.shape(first.outputs[0]) or ()
        for axis, size in enumerate(target):
            if size != 0:
                continue
            dim = between[axis] if axis < len(between) else None
            if not isinstance(dim, int) or dim == 0:
                return False
            resolved[axis] = dim
    if resolved != list(target):
        shape = graph.constant(f"{second.name}_shape", np.array(resolved, np.int64))
        graph.set_input(second, 1, shape)
    graph.set_input(second, 0, source)
    return True


def _merge_squeeze(graph: Graph, first: Node, second: Node) -> bool:
    inverse = {"Squeeze": "Unsqueeze", "Unsqueeze": "Squeeze"}.get(second.op_type)
    if first.op_type == inverse and first.inputs[0] is not None:
        # Both count axes from the end of the longer shape, so equal lists mean equal axes.
        one, two = ints(graph, first, 1, "axes"), ints(graph, second, 1, "axes")
        if one is not None and two is not None and sorted(one) == sorted(two):
            return _bypass(graph, second, first.inputs[0])
    return _undo(graph, first, second)


def _undo(graph: Graph, first: Node, second: Node) -> bool:
    """Drop the second of two nodes after which the shape is what it was before the first."""
    source = first.inputs[0]
    if first.op_type not in _RESHAPING or source is None:
        return False
    if not same_shape_if_same_size(graph, source, second.outputs[0]):
        return False
    return _bypass(graph, second, source)


def _bypass(graph: Graph, node: Node, source: Value) -> bool:
    if not replaceable(node.outputs[0], source):
        return False
    graph.replace(node.outputs[0], source)
    graph.remove(node)
    return True


_RULES: dict[str, Callable[[Graph, Node, Node], bool]] = {
    "Flatten": _undo,
    "Reshape": _merge_reshape,
    "Squeeze": _merge_squeeze,
    "Transpose": _merge_transpose,
    "Unsqueeze": _merge_squeeze,
}
