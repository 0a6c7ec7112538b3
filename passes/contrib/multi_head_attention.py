"""MultiHeadAttention from attention with any additive mask, as encoders have it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qgraph.graph import Graph, Node, Value
from qgraph.passes.contrib._attention import Core, core, joined, pattern, was_split
from qgraph.passes.contrib._contributed import DOMAIN, Contributed
from qgraph.passes.contrib._lengths import dynamic_axes
from qgraph.pattern import Match, Pattern
from qgraph.pipeline import Reject

# What hides a score in every float type, float16 with its largest number of 65504 included.
_LOWEST = np.array(-3e4, np.float32)


@dataclass(frozen=True)
class MultiHeadAttention(Contributed):
    """com.microsoft.MultiHeadAttention from softmax(query key^T * scale + mask) value.

    Before:
        q1 = Transpose<perm = [0, 2, 1, 3]>(Reshape(q, [0, 0, heads, size]))
        k1 = Transpose<perm = [0, 2, 3, 1]>(Reshape(k, [0, 0, heads, size]))
        v1 = Transpose<perm = [0, 2, 1, 3]>(Reshape(v, [0, 0, heads, size]))
        p = Softmax(Add(Div(MatMul(q1, k1), 8), mask))
        y = Reshape(Transpose<perm = [0, 2, 1, 3]>(MatMul(p, v1)))

    After:
        b = Expand(Max(mask, -30000), [1, 1, length, 1])    # once for all layers
        y = MultiHeadAttention<num_heads, scale>(q, k, v, , , b)

    When:
        Queries, keys and values were split into as many heads from [batch, length, heads * size]. The
        mask, if there is one, has two axes or four.

    Leaves alone:
        Shared key heads, caches and rotary embeddings, which `group_query_attention` takes if the
        mask is causal; masks applied by a Where; other layouts.

    Numerics:
        Exact up to rounding, but for queries from which the mask hides every key: their results
        depend on how much a mask below -30000 adds, and mean nothing.

    Source:
        https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.

    Attributes:
        exclude: Globs of node names and operators that are left alone.
    """

    name: ClassVar[str] = "multi_head_attention"
    writes: ClassVar[str] = "MultiHeadAttention"
    pattern: ClassVar[Pattern] = pattern()

    def lowered(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Write one MultiHeadAttention."""
        found = core(m)
        if isinstance(found, Reject):
            return found
        for value, split in ((found.query, False), (found.key, found.split), (found.value, False)):
            if not was_split(graph, value, found.width, split=split):
                return Reject("its operands are not just split into heads")
        if found.mask is not None and graph.rank(found.mask) not in (2, 4):
            return Reject("its mask is not known to have two axes or four")
        width, root = found.width, m.root
        data = [
            joined(graph, found.query, width, root),
            joined(graph, found.key, width, root, split=found.split),
            joined(graph, found.value, width, root),
        ]
        bias = None if found.mask is None else _bias(graph, found, data[0], found.mask, root)
        node = graph.insert(
            self.writes,
            data if bias is None else [*data, None, None, bias],
            before=root,
            attributes={"num_heads": found.heads, "scale": found.scale},
            domain=DOMAIN,
            like=root.outputs[0],
        )
        return node.outputs[0]


def _bias(graph: Graph, found: Core, query: Value, mask: Value, root: Node) -> Value:
    """Write the mask as [batch or 1, heads or 1, queries, keys]."""
    lowest = graph.constant("lowest_bias", _LOWEST)
    mask_shape = graph.shape(mask)
    bias = graph.insert("Max", [mask, lowest], before=root, like=mask).outputs[0]
    if len(mask_shape or ()) == 2:
        axes = graph.constant("bias_axes", np.array([0, 1], np.int64))
        bias = graph.insert("Unsqueeze", [bias, axes], before=root).outputs[0]
        bias.type = mask.type
    queries = (graph.shape(found.query) or (None,) * 4)[2]
    if mask_shape is not None and mask_shape[-2] == queries and isinstance(queries, int):
        return bias
    one = graph.constant("one", np.array([1], np.int64))
    axes_of = dynamic_axes(graph)
    source, axis = axes_of.get(queries, (query, 1)) if isinstance(queries, str) else (query, 1)
    at = {"start": axis, "end": axis + 1}
    length = graph.insert("Shape", [source], before=root, attributes=at).outputs[0]
    shape = graph.insert("Concat", [one, one, length, one], before=root, attributes={"axis": 0})
    spread = graph.insert("Expand", [bias, shape.outputs[0]], before=root)
    spread.outputs[0].type = mask.type
    return spread.outputs[0]
