"""GroupQueryAttention from causal attention, with its rotary embeddings and its KV cache."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qgraph.graph import Graph, Node, Value
from qgraph.passes.contrib._attention import Core, core, joined, pattern, unshared
from qgraph.passes.contrib._causal import Length, Lengths, causal_lengths
from qgraph.passes.contrib._contributed import DOMAIN, Contributed
from qgraph.passes.contrib._lengths import dynamic_axes
from qgraph.passes.contrib._rotary import Rotation, Table, rotation, table
from qgraph.pattern import Match, Pattern
from qgraph.pipeline import Reject

_TIME = 2  # axis of a cache [batch, heads, length, size]


@dataclass(frozen=True)
class _Grown:
    """Keys or values [batch, heads, length, size], and the cache in front of them."""

    new: Value
    past: Value | None
    all: Value


@dataclass(frozen=True)
class _Plan:
    """Everything that the operator is written from; the graph is as before."""

    core: Core
    lengths: Lengths
    key: _Grown
    value: _Grown
    key_heads: int
    rotations: tuple[Rotation, Rotation] | None
    tables: tuple[Table, Table] | None


@dataclass(frozen=True)
class GroupQueryAttention(Contributed):
    """com.microsoft.GroupQueryAttention from causal attention.

    Before:
        r = rotary(q)                       # x cos + rotate_half(x) sin, heads first
        t = rotary(k)
        k1 = Concat<axis = 2>(past_key, t)  # also the output present_key
        v1 = Concat<axis = 2>(past_value, v)
        k2 = Reshape(Expand(Unsqueeze(k1))) # each key head for its query heads
        v2 = Reshape(Expand(Unsqueeze(v1)))
        s = MatMul(r, Transpose(k2))
        p = Softmax(Add(Div(s, 8), mask))
        y = Reshape(Transpose(MatMul(p, v2)))

    After:
        y, present_key, present_value = GroupQueryAttention<num_heads, kv_num_heads, scale,
            do_rotary = 1>(q, k, v, past_key, past_value, last, total, cos, sin)

    q, k and v are the projections' results before their split into heads; total is the number of
    tokens so far, last that less one for each sequence. Rotary embeddings by halves of a
    constant table, caches and shared heads each may be missing. A rotary embedding of another
    kind stays in front of the operator.

    When:
        The mask is a function of lengths alone and equal to the causal one at several of them; see
        `qgraph.passes.contrib._causal`. Heads' length is known and a multiple of 8 (16 with rotary
        embeddings).

    Leaves alone:
        No mask, masks that hide padding, windows and anything else; masks that depend on inputs'
        data, as an `attention_mask` does: the operator knows padding at the end of a sequence
        only, the mask could say anything. Keys and values of different length or origin.

    Numerics:
        Exact up to rounding. Positions beyond the rotary table are an error, where the graph had
        one too, in its Add. onnxruntime takes several tokens behind a cache in one sequence at a
        time only: with a batch of more it says so and ends.

    Source:
        https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md; Ainslie et al.,
        GQA, 2023.

    Attributes:
        presents: Whether the operator has outputs for the cache even where nobody reads them.
            onnxruntime's CUDA kernel writes them always; its CPU kernel takes half the time without
            them.
        exclude: Globs of node names and operators that are left alone.
    """

    presents: bool = True

    name: ClassVar[str] = "group_query_attention"
    writes: ClassVar[str] = "GroupQueryAttention"
    pattern: ClassVar[Pattern] = pattern()

    def lowered(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Write one GroupQueryAttention."""
        plan = _plan(graph, m)
        return plan if isinstance(plan, Reject) else _write(graph, plan, m.root, self.presents)


def _plan(graph: Graph, m: Match) -> _Plan | Reject:
    found = core(m)
    if isinstance(found, Reject):
        return found
    if found.mask is None:
        return Reject("it has no mask, so it is not causal")
    if found.size % 8:
        return Reject(f"its heads are {found.size} long, not a multiple of 8")
    lengths = causal_lengths(graph, found.mask)
    if isinstance(lengths, Reject):
        return lengths
    queries = (graph.shape(found.query) or ())[_TIME]
    if isinstance(lengths.queries, int) and queries != lengths.queries:
        return Reject("its mask has another length than its queries")
    key, value = (_grown(graph, unshared(graph, v)) for v in (found.key, found.value))
    if found.split and key.past is not None:
        return Reject("its cache has another layout")
    reason = _mismatch(graph, key, value, lengths)
    if reason is None and not all(_leads_here(m, each) for each in (key, value)):
        reason = "its cache is read by more than it"
    if reason is not None:
        return Reject(reason)
    axis = 2 if found.split else 1
    key_heads = (graph.shape(key.new) or ())[axis]
    if not isinstance(key_heads, int) or (graph.shape(value.new) or (0, 0))[1] != key_heads:
        return Reject("the number of its key heads is unknown, or not that of its value heads")
    if found.heads % key_heads:
        return Reject("its key heads are not shared evenly")
    rotations, tables = _rotary(graph, found, key, lengths)
    return _Plan(found, lengths, key, value, key_heads, rotations, tables)


def _grown(graph: Graph, value: Value) -> _Grown:
    node = value.producer()
    if node is None or not graph.is_standard(node, "Concat") or len(node.inputs) != 2:
        return _Grown(value, None, value)
    past, new = node.inputs
    if graph.attribute(node, "axis") not in (_TIME, _TIME - 4) or past is None or new is None:
        return _Grown(value, None, value)
    return _Grown(new, past, value)


def _mismatch(graph: Graph, key: _Grown, value: _Grown, lengths: Lengths) -> str | None:
    """Say why caches and mask do not belong together."""
    if (key.past is None) != (value.past is None):
        return "only one of its keys and values has a cache"
    if key.past is None:
        return None if lengths.past == 0 else "its mask counts tokens that no cache holds"
    assert value.past is not None, "one has what the other has"
    for past in (key.past, value.past):
        shape = graph.shape(past) or ()
        if len(shape) != 4 or not _is_length(graph, shape[_TIME], lengths.past):
            return "its mask does not count its cache's tokens"
    return None


def _leads_here(m: Match, grown: _Grown) -> bool:
    """Whether a cache is read by this attention alone, which will write it later than now.

    What casts it for a graph output may read it too.
    """
    value = grown.all
    while grown.past is not None:
        readers = set(m.graph.readers(value)) - set(_carriers(m.graph, grown.all))
        if len(readers) != 1 or (value is not grown.all and value.is_graph_output()):
            return False
        (reader,) = readers
        if reader in m.nodes:
            return True
        value = reader.outputs[0]
    return True


def _carriers(graph: Graph, cache: Value) -> list[Node]:
    """Return what only hands a cache on to a graph output."""
    return [
        node
        for node in graph.readers(cache)
        if graph.is_standard(node, "Cast", "Identity")
        and node.outputs[0].is_graph_output()
        and not graph.readers(node.outputs[0])
    ]


def _is_length(graph: Graph, dim: int | str | None, length: Length) -> bool:
    return dim is not None and dim == _dim(graph, length)


def _dim(graph: Graph, length: Length) -> int | str | None:
    """Return a length as shapes say it."""
    if isinstance(length, int):
        return length
    value, axis = length
    return (graph.shape(value) or ())[axis]


def _rotary(
    graph: Graph, found: Core, key: _Grown, lengths: Lengths
) -> tuple[tuple[Rotation, Rotation] | None, tuple[Table, Table] | None]:
    """Return rotations that the operator can do itself, with their tables."""
    query = rotation(graph, found.query)
    turned = None if found.split else rotation(graph, key.new)
    if query is None or turned is None or (query.cos, query.sin) != (turned.cos, turned.sin):
        return None, None
    if found.size % 16:
        return None, None
    half = found.size // 2
    cos, sin = (table(graph, each, lengths, half) for each in (query.cos, query.sin))
    if cos is None or sin is None or cos.rows.shape != sin.rows.shape:
        return None, None
    return (query, turned), (cos, sin)


def _write(graph: Graph, plan: _Plan, root: Node, presents: bool) -> Value:
    query, key = plan.core.query, plan.key.new
    tables: list[Value | None] = []
    if plan.rotations is not None and plan.tables is not None:
        query, key = (each.source for each in plan.rotations)
        tables = [each.written(graph) for each in plan.tables]
    width = plan.key_heads * plan.core.size
    data = [
        joined(graph, query, plan.core.width, root),
        joined(graph, key, width, root, split=plan.core.split),
        joined(graph, plan.value.new, width, root),
    ]
    last, total = _counts(graph, data[0], plan.lengths, root)
    node = graph.insert(
        "GroupQueryAttention",
        [*data, plan.key.past, plan.value.past, last, total, *tables],
        before=root,
        attributes={
            "num_heads": plan.core.heads,
            "kv_num_heads": plan.key_heads,
            "scale": plan.core.scale,
            "do_rotary": int(bool(tables)),
        },
        outputs=3 if presents or plan.key.past is not None else 1,
        domain=DOMAIN,
        like=root.outputs[0],
    )
    for new, old in zip(node.outputs[1:], (plan.key.all, plan.value.all), strict=False):
        new.type = old.type
        if plan.key.past is not None:
            for carrier in _carriers(graph, old):
                _behind(graph, carrier, node)
            graph.replace(old, new)
    return node.outputs[0]


def _behind(graph: Graph, node: Node, place: Node) -> None:
    """Move a node with one input behind another one."""
    attributes = dict(node.attributes)
    (old,) = node.outputs
    moved = graph.insert(
        node.op_type, node.inputs, after=place, attributes=attributes, name=node.name, like=old
    )
    graph.replace(old, moved.outputs[0])
    graph.remove(node)


def _counts(graph: Graph, query: Value, lengths: Lengths, root: Node) -> tuple[Value, Value]:
    """Write the numbers of tokens: for each sequence that less one, and that of all."""
    parts = [_length(graph, each, root) for each in (lengths.queries, lengths.past) if each != 0]
    total = parts[0]
    for part in parts[1:]:
        total = graph.insert("Add", [total, part], before=root).outputs[0]
    one = graph.constant("one", np.array([1], np.int64))
    last = graph.insert("Sub", [total, one], before=root).outputs[0]
    # The graph input's axis where it is known to be one: the same nodes for all layers.
    axes, dim = dynamic_axes(graph), (graph.shape(query) or (None,))[0]
    place = axes.get(dim, (query, 0)) if isinstance(dim, str) else (query, 0)
    batch = _shape(graph, *place, root)
    last = graph.insert("Expand", [last, batch], before=root).outputs[0]
    return _int32(graph, last, root), _int32(graph, total, root)


def _length(graph: Graph, length: Length, root: Node) -> Value:
    if isinstance(length, int):
        return graph.constant("length", np.array([length], np.int64))
    return _shape(graph, *length, root)


def _shape(graph: Graph, value: Value, axis: int, root: Node) -> Value:
    attributes = {"start": axis, "end": axis + 1}
    return graph.insert("Shape", [value], before=root, attributes=attributes).outputs[0]


def _int32(graph: Graph, value: Value, root: Node) -> Value:
    """Cast a length; Abs changes no length.

    Where all lengths are known, onnxruntime follows their values through Cast, and hands them to
    the operator's shape inference as int64 still, which refuses the model. It follows none
    through Abs.
    """
    attributes = {"to": int(ir.DataType.INT32)}
    cast = graph.insert("Cast", [value], before=root, attributes=attributes)
    cast.outputs[0].dtype = ir.DataType.INT32
    found = graph.insert("Abs", [cast.outputs[0]], before=root).outputs[0]
    found.dtype = ir.DataType.INT32
    return found
