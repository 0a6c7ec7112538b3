"""Cuts a graph into stages, so that each layer's weight is known before its result is needed.

Layers that no other layer's result leads to make up the first group; their results are computed in
the second stage, with their quantized weights, and so on. In a decoder the stages are: up to the
input of q, k and v; attention up to the output projection; that and the norm in front of gate and
up; gate, up and their product; the down projection and the next block's norm. Every node runs in
one stage only, on values kept from earlier ones: a truly sequential order for the price of a
single run of the model.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from qgraph.graph import Graph, Node, Value
from qgraph.passes.weight_only.layers import Layer
from qgraph.subgraph import read_by

# Nodes that cost too much to compute again in every stage that needs them, or would not give the
# same again. What precedes them all, such as masks, rotary tables and embeddings, is not kept.
_DEAR = frozenset(
    {
        *("MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose", "Attention"),
        *("RNN", "LSTM", "GRU", "If", "Loop", "Scan"),
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Bernoulli", "Multinomial", "Dropout"),
    }
)


@dataclass(eq=False)
class Group:
    """Layers of one stage that share an input.

    Attributes:
        data: The input.
        layers: The layers.
    """

    data: Value
    layers: list[Layer]


@dataclass(eq=False)
class Stage:
    """A part of the graph that runs in one go.

    Attributes:
        nodes: In graph order; those that compute again what was not worth keeping included.
        reads: Graph inputs, and values kept by earlier stages.
        keeps: Values that later stages read.
        drops: Values that no later stage reads.
        groups: Layers whose inputs are known when it has run.
    """

    nodes: list[Node] = field(default_factory=list)
    reads: list[Value] = field(default_factory=list)
    keeps: list[Value] = field(default_factory=list)
    drops: list[Value] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


def cut(graph: Graph, layers: Sequence[Layer]) -> list[Stage]:
    """Cut the part of the graph that leads to the layers' inputs into stages.

    Args:
        graph: The graph; it is not changed.
        layers: Layers of the outermost graph, one a weight.
    """
    if not layers:
        return []
    number, plain = _numbered(graph, layers)
    firsts = {layer.node: layer for layer in layers}
    count = 1 + max(_known(number, layer.data) for layer in layers)
    stages = [Stage() for _ in range(count)]
    for layer in firsts.values():
        _join(stages[_known(number, layer.data)].groups, layer)
    needed = _ancestors(layer.data for layer in layers)
    order = [node for node in graph.nodes() if node in needed]
    own: list[list[Node]] = [[] for _ in stages]
    for node in order:
        if node not in plain:
            own[number[node.outputs[0]]].append(node)
    position = {node: index for index, node in enumerate(order)}
    last: dict[Value, int] = {}
    for index, stage in enumerate(stages):
        wanted = [v for node in own[index] for v in read_by(node)]
        wanted += [group.data for group in stage.groups]
        again = _ancestors(v for v in wanted if _plain_value(v, plain))
        stage.nodes = sorted([*own[index], *again], key=position.__getitem__)
        inside = {out for node in stage.nodes for out in node.outputs}
        reads = [v for node in stage.nodes for v in read_by(node)]
        reads += [group.data for group in stage.groups]
        outside = [v for v in dict.fromkeys(reads) if v not in inside]
        stage.reads = [v for v in outside if not v.is_initializer() or v.is_graph_input()]
        last.update(dict.fromkeys(stage.reads, index))
    for index, stage in enumerate(stages):
        made = [out for node in stage.nodes if node not in plain for out in node.outputs]
        stage.keeps = [v for v in made if last.get(v, -1) > index]
        stage.drops = [v for v in stage.reads if last[v] == index]
    return stages


def _numbered(graph: Graph, layers: Sequence[Layer]) -> tuple[dict[Value, int], set[Node]]:
    """Return the stage that computes each value, and the nodes cheap enough to run in many."""
    products = {node for layer in layers for node in layer.nodes}
    number: dict[Value, int] = {}
    plain: set[Node] = set()
    for node in graph.nodes():
        inputs = list(read_by(node))
        stage = max((_known(number, v) for v in inputs), default=0)
        cheap = graph.is_standard(node) and node.op_type not in _DEAR
        if cheap and all(_plain_value(v, plain) for v in inputs):
            plain.add(node)
        number.update(dict.fromkeys(node.outputs, stage + (node in products)))
    return number, plain


def _known(number: dict[Value, int], value: Value) -> int:
    """Stage after which a value is known; constants and inputs are from the start."""
    return number.get(value, 0)


def _plain_value(value: Value, plain: set[Node]) -> bool:
    producer = value.producer()
    return producer is None or producer in plain


def _join(groups: list[Group], layer: Layer) -> None:
    # Experts have a Gram matrix each, and so none in common with others.
    if len(layer.shape) == 2:
        for group in groups:
            if group.data is layer.data and len(group.layers[0].shape) == 2:
                group.layers.append(layer)
                return
    groups.append(Group(layer.data, [layer]))


def _ancestors(values: Iterable[Value]) -> set[Node]:
    """Return all nodes of the outermost graph that lead to the values."""
    found: set[Node] = set()
    waiting = [p for p in map(_producer, values) if p is not None]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(_producers(node))
    return found


def _producer(value: Value) -> Node | None:
    return value.producer()


def _producers(node: Node) -> Iterator[Node]:
    for value in read_by(node):
        producer = value.producer()
        if producer is not None:
            yield producer
