"""Recognises attention blocks and leaves them as facts; the graph stays as it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from qgraph.context import Context
from qgraph.facts import Attention
from qgraph.graph import Graph, Node, Value
from qgraph.passes.fusions._attention_heads import (
    VIEWS,
    heads,
    is_number,
    is_rotary,
    repeats,
    unscaled,
)
from qgraph.passes.fusions._attention_mask import is_causal
from qgraph.pipeline import Pass, PassReport

# Between Softmax and its neighbours there are few nodes: scale, mask, clamp, casts, views.
_MAX_STEPS = 24


@dataclass(frozen=True)
class MarkAttention(Pass):
    """Mark softmax(query key^T * scale + mask) value, as placement and engines need to know it.

    Before and after, the same nodes:
        t = Transpose<perm = [0, 1, 3, 2]>(key)
        s = MatMul(query, t)
        d = Div(s, 8)
        m = Add(d, mask)
        p = Softmax<axis = -1>(m)
        y = MatMul(p, value)

    Fact `attention`:
        One `qgraph.facts.Attention` a block, in graph order, those in subgraphs included.

    When:
        A Softmax over the last axis lies between two products of activations. The scale may be a
        Mul or Div on the scores, the query, the key or both; the mask an Add, a Sub, a Where or a
        Mul; clamps (Max, Min, Clip), soft caps (Tanh), Casts, Reshapes and a guard against NaN
        may stand between. Of several masks the one next to the Softmax is kept; the block is
        causal if any of them is. The key's transpose may be one with the split into heads, or
        the products may be written transposed, as MatMul(value, p^T).

    Leaves alone:
        Softmax over another axis, and products with a constant, as a classifier's. Grouped heads
        and rotary embeddings are told by `query_heads`, `key_heads` and `rotary`. The ONNX operator
        Attention is one node already.

    Numerics:
        Exact: nothing is rewritten.

    Source:
        Vaswani et al., Attention Is All You Need, 2017, section 3.2.1; Ainslie et al., GQA, 2023;
        Su et al., RoFormer, 2021, section 3.4.2.
    """

    name: ClassVar[str] = "attention"
    gives: ClassVar[frozenset[str]] = frozenset({"attention"})

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Write `facts.attention`."""
        report = PassReport()
        causal: dict[Value, bool] = {}
        found = []
        for node in graph.walk():
            if node.op_type != "Softmax" or not graph.is_standard(node):
                continue
            product = next(_contexts(graph, node.outputs[0]), None)
            if product is None:
                continue
            where = node.name or node.outputs[0].name or "Softmax"
            if not _is_over_last_axis(graph, node):
                report.refuse(where, "its Softmax is not known to be over the last axis")
                continue
            entry = node.inputs[0]
            scores = None if entry is None else _scores(graph, entry, set())
            if scores is None:
                report.refuse(where, "what enters its Softmax is no product of two activations")
                continue
            block = _block(graph, node, product, scores, causal)
            found.append(block)
            report.details.append(f"{where}: {_describe(block)}")
        graph.facts.attention = found
        return report


@dataclass(frozen=True)
class _Scores:
    """The product that enters a Softmax, and the masks on the way, the nearest one last."""

    node: Node
    masks: tuple[Value, ...] = ()


def _block(
    graph: Graph,
    softmax: Node,
    product: tuple[Node, Value],
    scores: _Scores,
    causal: dict[Value, bool],
) -> Attention:
    query, key = scores.node.inputs
    assert query is not None and key is not None, "_scores looked"
    for mask in scores.masks:
        if mask not in causal:
            causal[mask] = is_causal(graph, mask)
    shared, many = repeats(graph, key), heads(graph, key)
    return Attention(
        query=unscaled(graph, query),
        key=_before_transpose(graph, key),
        value=product[1],
        scores=scores.node,
        softmax=softmax,
        context=product[0],
        mask=scores.masks[-1] if scores.masks else None,
        causal=any(causal[mask] for mask in scores.masks),
        rotary=is_rotary(graph, query) and is_rotary(graph, key),
        query_heads=heads(graph, query),
        key_heads=many // shared if many and shared else None,
    )


def _contexts(graph: Graph, value: Value, steps: int = 6) -> Iterator[tuple[Node, Value]]:
    """Yield products of attention weights with an activation: the node and that activation."""
    if steps == 0:
        return
    for node in filter(graph.is_standard, graph.readers(value)):
        if node.op_type == "MatMul":
            other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
            if other is not None and other is not value and not _is_weight(graph, other):
                yield node, other
        elif node.op_type == "Where" or (
            node.op_type in VIEWS | {"Transpose"} and node.inputs[0] is value
        ):
            yield from _contexts(graph, node.outputs[0], steps - 1)


def _scores(graph: Graph, value: Value, seen: set[Value], steps: int = 0) -> _Scores | None:
    """Find the product of two activations behind scale and mask; `seen` led nowhere before."""
    node = value.producer()
    if node is None or value in seen or steps == _MAX_STEPS or not graph.is_standard(node):
        return None
    seen.add(value)
    if node.op_type == "MatMul":
        weights = any(_is_weight(graph, each) for each in node.inputs)
        return None if weights else _Scores(node)
    for lead, mask in _ways(graph, node):
        found = None if lead is None else _scores(graph, lead, seen, steps + 1)
        if found is not None:
            return found if mask is None else _Scores(found.node, (*found.masks, mask))
    return None


def _ways(graph: Graph, node: Node) -> list[tuple[Value | None, Value | None]]:
    """Return operands that may lead back to the scores, each with the mask that it meets here."""
    inputs = node.inputs
    if node.op_type in VIEWS or node.op_type in {"Clip", "Div", "Tanh", "Transpose"}:
        return [(inputs[0], None)]
    if node.op_type in {"Max", "Min"}:
        return [(each, None) for each in inputs]
    if node.op_type == "Where":
        return [(inputs[1], inputs[0]), (inputs[2], inputs[0])]
    if node.op_type in {"Add", "Mul", "Sub"}:
        first, second = inputs
        ways = [(first, None if is_number(graph, second) else second)]
        if node.op_type != "Sub":
            ways.append((second, None if is_number(graph, first) else first))
        return ways
    return []


def _before_transpose(graph: Graph, key: Value) -> Value:
    value = unscaled(graph, key)
    node = value.producer()
    if node is None or not graph.is_standard(node, "Transpose") or node.inputs[0] is None:
        return value
    return unscaled(graph, node.inputs[0])


def _is_weight(graph: Graph, value: Value | None) -> bool:
    for _ in range(_MAX_STEPS):
        if value is None or graph.is_constant(value):
            return True
        node = value.producer()
        if node is None or not graph.is_standard(node):
            return False
        if node.op_type not in VIEWS and node.op_type not in {"Transpose", "DequantizeLinear"}:
            return False
        value = node.inputs[0]
    return False


def _is_over_last_axis(graph: Graph, softmax: Node) -> bool:
    axis = graph.attribute(softmax, "axis", -1 if graph.opset >= 13 else 1)
    rank = graph.rank(softmax.inputs[0]) or graph.rank(softmax.outputs[0])
    return axis == -1 or (rank is not None and axis == rank - 1)


def _describe(block: Attention) -> str:
    number = "unknown" if block.query_heads is None else str(block.query_heads)
    parts = [f"{number} heads"]
    if block.key_heads != block.query_heads:
        parts.append(f"{block.key_heads or 'unknown'} key heads")
    parts += ["masked"] * (block.mask is not None)
    parts += ["causal"] * block.causal + ["rotary"] * block.rotary
    return ", ".join(parts)
