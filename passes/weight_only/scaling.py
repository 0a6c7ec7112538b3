"""Where the scale of a layer's input channels can go: into what makes the input.

(X / s)(s W) = X W costs nothing where X / s comes for free: from a norm whose own scale is divided,
or from a product of which each column, alone, ends up in certain channels of X, as the columns of
a value projection do in the input of the output projection, and those of an up projection in that
of the down projection. Else a Mul divides.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.passes.weight_only.layers import Layer
from qgraph.passes.weight_only.stages import Group

NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
# Read no values, so that scaled ones don't matter to them.
_BLIND = frozenset({"Shape", "Size"})
# Through these a column may reach the input as it is, times factors that don't depend on it.
_CARRY = frozenset(
    {
        *("Reshape", "Transpose", "Expand", "Unsqueeze", "Squeeze", "Identity", "Flatten"),
        *("Concat", "Split", "Slice", "Gather", "Tile", "Mul", "MatMul", "Einsum"),
    }
)
# Of the results, which engines round. A wrong column is off by far more in one of the two sets.
_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Place:
    """Where a group's input is divided by its scale.

    Attributes:
        kind: `norm`: in the parameters of `node`. `product`: in the columns of the layer whose
            product, bias included, is `value`. `mul`: in a Mul of its own.
        node: The norm, or the Mul by a constant that ends it.
        value: The product.
        layer: Its layer.
        columns: For each input channel the column of the product that it comes from, int64 [K].
    """

    kind: Literal["norm", "product", "mul"]
    node: Node | None = None
    value: Value | None = None
    layer: Layer | None = None
    columns: NDArray[np.int64] | None = None


MUL = Place("mul")


def norm_place(graph: Graph, group: Group) -> Place | None:
    """Return the norm that makes the input, if nothing but the group's layers reads it."""
    node = group.data.producer()
    if node is None or not _read_by_group_only(graph, group):
        return None
    size = group.layers[0].size
    if node.op_type in NORMS and node.outputs[0] is group.data:
        parameters = [v for v in node.inputs[1:] if v is not None]
        fine = all(_is_vector(graph, v, size) for v in parameters)
        return Place("norm", node) if fine and parameters else None
    if graph.is_standard(node, "Mul") and any(
        _is_vector(graph, v, size, scalar=True) for v in node.inputs
    ):
        return Place("norm", node)
    return None


def product_candidates(graph: Graph, group: Group, layers: Iterable[Layer]) -> list[Place]:
    """Return the products that may reach the input column by column; `columns` are not known yet.

    Args:
        graph: The graph.
        group: Layers that share an input.
        layers: Those that are quantized.
    """
    if not _read_by_group_only(graph, group):
        return []
    by_node = {layer.node: layer for layer in layers if not layer.others}
    found: list[Place] = []
    ahead = _before(group.data)
    seen: set[Node] = set()
    waiting = [group.data]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        layer = by_node.get(_without_bias(graph, node))
        if layer is not None:
            if _leads_only_to(value, group, ahead):
                found.append(Place("product", value=value, layer=layer))
        elif node.op_type in _CARRY:
            waiting.extend(v for v in node.inputs if v is not None and not v.is_initializer())
    return found


def factors(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two sets of `size` distinct factors from 1 to 2, to multiply a product's columns by."""
    first = np.exp2(np.linspace(0, 1, size)).astype(np.float32)
    return first, np.random.default_rng(0).permutation(first)


def columns_of(
    base: NDArray[Any],
    first: NDArray[Any],
    second: NDArray[Any],
    by: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> NDArray[np.int64] | None:
    """Find from which column of a product each channel comes.

    Args:
        base: The input for some product, [..., K].
        first: The input when the product's columns are multiplied with the first factors.
        second: The same with the second ones.
        by: The factors, [N] each.

    Returns:
        int64 [K]; None unless every channel is multiplied with the factor of one column.
    """
    channels = base.shape[-1]
    rows = base.reshape(-1, channels).astype(np.float64)
    largest = np.abs(rows).argmax(axis=0)
    at = np.arange(channels)
    size = np.abs(rows[largest, at])
    if not size.all():
        return None
    ratio = first.reshape(-1, channels)[largest, at] / rows[largest, at]
    right = np.minimum(np.searchsorted(by[0], ratio), len(by[0]) - 1)
    left = np.maximum(right - 1, 0)
    nearer = np.abs(by[0][left] - ratio) <= np.abs(by[0][right] - ratio)
    columns: NDArray[np.int64] = np.where(nearer, left, right).astype(np.int64)
    for result, factor in zip((first, second), by, strict=True):
        off = np.abs(result.reshape(-1, channels) - rows * factor[columns]).max(axis=0)
        if (off > _TOLERANCE * size).any():
            return None
    return columns


def _is_vector(graph: Graph, value: Value | None, size: int, *, scalar: bool = False) -> bool:
    tensor = graph.tensor(value)
    if tensor is None:
        return False
    shape = tensor.shape.numpy()
    return (bool(shape) and shape[-1] == size and tensor.size == size) or (
        scalar and tensor.size == 1
    )


def _read_by_group_only(graph: Graph, group: Group) -> bool:
    nodes = {node for layer in group.layers for node in layer.nodes}
    readers = {n for n in graph.readers(group.data) if n.op_type not in _BLIND}
    return readers == nodes and not group.data.is_graph_output()


def _without_bias(graph: Graph, node: Node) -> Node:
    """Return the product in front of an Add of a constant; else the node itself."""
    if not graph.is_standard(node, "Add"):
        return node
    others = [v for v in node.inputs if v is not None and not graph.is_constant(v)]
    producer = others[0].producer() if len(others) == 1 else None
    if producer is None or graph.only_reader(producer.outputs[0]) is not node:
        return node
    return producer


def _leads_only_to(value: Value, group: Group, ahead: set[Node]) -> bool:
    """Whether all that reads `value` leads to the group's input and nowhere else."""
    waiting, seen = [value], set()
    while waiting:
        each = waiting.pop()
        if each in seen or each is group.data:
            continue
        seen.add(each)
        if each.is_graph_output():
            return False
        for use in each.uses():
            if use.node.op_type in _BLIND:
                continue
            if use.node not in ahead:
                return False
            waiting.extend(use.node.outputs)
    return True


def _before(value: Value) -> set[Node]:
    found: set[Node] = set()
    waiting = [value.producer()]
    while waiting:
        node = waiting.pop()
        if node is None or node in found:
            continue
        found.add(node)
        waiting.extend(v.producer() for v in node.inputs if v is not None)
    return found
