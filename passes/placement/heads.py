"""Finds detection heads: what turns a network's last results into boxes, which needs float."""

from collections.abc import Iterable

import numpy as np

from qgraph.graph import Graph, Node

REASON = "decodes detections: coordinates and scores need float's resolution"

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CURVES = ("Exp", "Sigmoid", "Softmax")
_ANCHORED = ("Add", "Div", "Mul", "Pow", "Sub")
_JOINS = ("Concat", "Slice", "Split")
_LAYOUT = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def detection_heads(graph: Graph) -> set[Node]:
    """Return the nodes behind the last layers that decode boxes.

    A head is a connected part of the graph behind which no layer comes (Conv, ConvTranspose, Gemm
    or MatMul), that begins at a Conv, and that selects boxes (NonMaxSuppression) or has all of: an
    Exp, Sigmoid or Softmax; arithmetic with a constant of more than one element, such as grid
    offsets and anchor sizes; and Concat, Split or Slice. A layer that takes the mean of a
    distribution, as distribution focal loss (Li et al. 2020, "Generalized Focal Loss") has it,
    counts as decoding: it multiplies a Softmax by 0, 1, 2, ...
    """
    import networkx as nx

    nodes = list(graph.main)
    layers = {n for n in graph.nodes(*_LAYERS) if not _takes_mean(graph, n)}
    if not any(node.op_type == "Conv" for node in layers):
        return set()
    view = graph.view()
    before: set[Node] = set()
    for node in reversed(nodes):
        if node in layers or any(reader in before for reader in view.successors(node)):
            before.add(node)
    fed: set[Node] = set()
    for node in nodes:
        if any(source in fed or source.op_type == "Conv" for source in view.predecessors(node)):
            fed.add(node)
    behind = fed - before
    parts: Iterable[set[Node]] = nx.weakly_connected_components(view.subgraph(behind))
    return {node for part in parts if _decodes(graph, part) for node in part}


def _decodes(graph: Graph, part: set[Node]) -> bool:
    ops = {node.op_type for node in part if graph.is_standard(node)}
    if "NonMaxSuppression" in ops:
        return True
    anchored = any(
        graph.is_standard(node, *_ANCHORED) and any(_is_table(graph, node, i) for i in (0, 1))
        for node in part
    )
    return anchored and not ops.isdisjoint(_CURVES) and not ops.isdisjoint(_JOINS)


def _is_table(graph: Graph, node: Node, index: int) -> bool:
    tensor = graph.tensor(node.inputs[index])
    return tensor is not None and tensor.size > 1


def _takes_mean(graph: Graph, node: Node) -> bool:
    """Whether a layer multiplies a Softmax by evenly spaced numbers, one result each."""
    weight = graph.tensor(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None or weight.size < 2 or max(weight.shape.numpy(), default=0) != weight.size:
        return False
    steps = np.diff(np.asarray(weight.numpy(), np.float64).reshape(-1))
    if not (steps[0] != 0 and np.allclose(steps, steps[0])):
        return False
    value = node.inputs[0]
    while value is not None and (producer := value.producer()) is not None:
        if graph.is_standard(producer, "Softmax"):
            return True
        if not graph.is_standard(producer, *_LAYOUT):
            return False
        value = producer.inputs[0]
    return False
