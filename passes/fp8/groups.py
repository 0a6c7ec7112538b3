"""Which products are computed in float8, and which of them share an input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

from qgraph.costs import load_costs, pays
from qgraph.graph import Graph, Node, Value
from qgraph.passes.weight_only.layers import Layer, find_layers, is_head
from qgraph.target import Float8Rules


@dataclass(eq=False)
class Group:
    """Products that multiply one value.

    Attributes:
        data: The value.
        nodes: The products, in graph order.
    """

    data: Value
    nodes: list[Node]


@dataclass(frozen=True)
class Wishes:
    """What the user wants.

    Attributes:
        exclude: Globs of node names and operators that stay in float.
        leave: Globs of names of products that do.
        head: Whether products that make a graph output are among them.
        least: Weights with fewer elements stay in float.
        batch: Rows multiplied at a time where the shapes do not say it; None for unknown.
        costs: Whether measured times decide.
        against: What the products would be computed in otherwise.
    """

    exclude: Sequence[str]
    leave: Sequence[str]
    head: bool
    least: int
    batch: int | None
    costs: bool
    against: str


def find_groups(
    graph: Graph, rules: Float8Rules, wishes: Wishes
) -> tuple[list[Group], dict[str, str]]:
    """Find the products to compute in float8.

    Returns:
        Groups in graph order; and of all other linear nodes why they stay in float, by name.
    """
    layers, refused = find_layers(graph, exclude=wishes.exclude, head=True, least=wishes.least)
    by_node = {node: layer for layer in layers for node in layer.nodes}
    groups: dict[Value, Group] = {}
    for node in graph.nodes():
        if node not in by_node:
            continue
        reason = _refusal(graph, node, by_node[node], rules, wishes)
        if reason is not None:
            refused[node.name or ""] = reason
            continue
        data = node.inputs[0]
        assert data is not None
        groups.setdefault(data, Group(data, [])).nodes.append(node)
    return list(groups.values()), refused


def rows_of(graph: Graph, value: Value, batch: int | None) -> int | None:
    """Return how many rows are multiplied at a time, or None where nothing says it."""
    lengths = (graph.shape(value) or (None,))[:-1]
    known = [length for length in lengths if isinstance(length, int)]
    return math.prod(known) if len(known) == len(lengths) else batch


def _refusal(
    graph: Graph, node: Node, layer: Layer, rules: Float8Rules, wishes: Wishes
) -> str | None:
    data = node.inputs[0]
    for pattern in wishes.leave:
        if fnmatchcase(node.name or "", pattern):
            return f"left out by fp8.leave={pattern!r}"
    if len(layer.shape) != 2:
        return "a stack of experts' weights has no float8 kernel"
    if data is None or (graph.rank(data) or 0) < 2:
        return "its input has fewer than 2 axes, or an unknown number"
    for value in (data, layer.weight):
        if value.dtype != ir.DataType.FLOAT:
            return f"works on {value.dtype.name.lower() if value.dtype else 'unknown'}, not float32"
    depth, width = layer.shape
    if depth % rules.multiple or width % rules.multiple:
        return f"[{depth}, {width}] are no multiples of {rules.multiple}"
    if not wishes.head and is_head(graph, node):
        return "it makes a graph output; fp8.head=true quantizes it too"
    return _slower(graph, data, depth, width, rules, wishes)


def _slower(
    graph: Graph, data: Value, depth: int, width: int, rules: Float8Rules, wishes: Wishes
) -> str | None:
    rows = rows_of(graph, data, wishes.batch)
    if rows is None or not wishes.costs or not rules.costs:
        return None
    verdict = pays(load_costs(rules.costs), depth, width, rows, "fp8", 0, against=wishes.against)
    if verdict is None or verdict.pays:
        return None
    return (
        f"fp8 would take {verdict.ratio:.2f} times as long as {wishes.against} with {rows} rows "
        f"({verdict.source}); fp8.costs=false does it all the same"
    )
