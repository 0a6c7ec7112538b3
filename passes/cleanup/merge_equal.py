"""Common subexpressions: what is computed or stored twice is kept once."""

import hashlib
import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from qgraph.context import Context
from qgraph.graph import Graph, Node, Value
from qgraph.passes.cleanup._shapes import replaceable
from qgraph.pipeline import Pass, PassReport
from qgraph.traversal import bodies

_DOMAINS = frozenset({"", "ai.onnx.ml"})
_RANDOM = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
# Engines match Q/DQ pairs node by node; a shared one matches only once.
_QUANTIZING = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
# Attribute tensors are compared up to this size.
_SMALL = 4096
# Large weights are told apart by a few bytes of them, where that is enough.
_SAMPLE = 4096


@dataclass(frozen=True)
class MergeEqual(Pass):
    """Merge nodes that compute the same, and initializers that hold the same.

    Before:
        a = Sigmoid(x)
        b = Sigmoid(x)
        y = Add(a, b)

    After:
        a = Sigmoid(x)
        y = Add(a, a)

    When:
        Two nodes of the standard domains with the same operator, attributes and inputs; the
        second may be in a subgraph of the first one's graph. Two initializers of one graph with
        the same type, shape and bytes.

    Leaves alone:
        Random operators; Q/DQ, which engines match one by one; nodes with subgraphs; operators
        of other domains, which may have a state; a node whose result is a graph output that
        could not keep its name; initializers that are graph inputs or outputs; sparse ones.

    Numerics:
        Exact. Constants are compared by their bytes, so 0 and -0 differ and equal NaNs match.

    Source:
        Common subexpression elimination by hashing: Cocke, "Global common subexpression
        elimination", 1970, https://doi.org/10.1145/390013.808480.
    """

    name: ClassVar[str] = "merge_equal"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Merge constants first, so that nodes which read equal ones look equal."""
        report = PassReport()
        for each in graph.graphs():
            _merge_constants(graph, each.initializers.values(), report)
        _merge_nodes(graph, graph.main, {}, report)
        return report


def _merge_nodes(graph: Graph, owner: ir.Graph, seen: dict[Any, Node], report: PassReport) -> None:
    # Nodes of an outer graph that come before this one are visible here, not the other way round.
    added = []
    for node in owner:
        key = _key(node)
        if key is not None:
            twin = seen.get(key)
            if twin is None:
                seen[key] = node
                added.append(key)
            elif _merge(graph, twin, node):
                report.did(f"{node.op_type} {node.name} is {twin.name}")
                continue
        for attr in node.attributes.values():
            for body in bodies(attr):
                _merge_nodes(graph, body, seen, report)
    for key in added:
        del seen[key]


def _merge(graph: Graph, kept: Node, dropped: Node) -> bool:
    pairs = list(zip(dropped.outputs, kept.outputs, strict=True))
    if not all(replaceable(old, new) for old, new in pairs):
        return False
    for old, new in pairs:
        graph.replace(old, new)
    graph.remove(dropped)
    return True


def _key(node: Node) -> Any:
    if node.domain not in _DOMAINS or node.op_type in _RANDOM or node.op_type in _QUANTIZING:
        return None
    if not node.inputs:
        return None
    # Output names: an omitted output is not there to be read.
    present = tuple([bool(out.name) for out in node.outputs])
    if not node.attributes:
        return (node.op_type, node.domain, node.inputs, present)
    attributes = []
    for name in sorted(node.attributes):
        value = _attribute_key(node.attributes[name])
        if value is None:
            return None
        attributes.append((name, value))
    return (node.op_type, node.domain, node.inputs, present, tuple(attributes))


def _attribute_key(attr: ir.Attr) -> Any:
    if attr.is_ref():
        return None
    match attr.type:
        case ir.AttributeType.INT | ir.AttributeType.STRING:
            return attr.value
        case ir.AttributeType.INTS | ir.AttributeType.STRINGS:
            return tuple(attr.value)
        case ir.AttributeType.FLOAT:
            return struct.pack("d", attr.value)
        case ir.AttributeType.FLOATS:
            return struct.pack(f"{len(attr.value)}d", *attr.value)
        case ir.AttributeType.TENSOR:
            tensor: ir.TensorProtocol = attr.value
            if tensor.nbytes > _SMALL or tensor.dtype == ir.DataType.STRING:
                return None
            return (tensor.dtype, tensor.shape.numpy(), tensor.tobytes())
    return None


def _merge_constants(graph: Graph, values: Iterable[Value], report: PassReport) -> None:
    kinds: dict[Any, list[Value]] = defaultdict(list)
    for value in values:
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        if not value.uses():
            continue  # as those that an earlier run merged, until drop_dead comes
        if tensor.dtype != ir.DataType.STRING:
            kinds[tensor.dtype, tensor.shape.numpy()].append(value)
    for alike in kinds.values():
        for group in _split(alike, _sampled):
            for equal in _split(group, _digest):
                for value in equal[1:]:
                    graph.replace(value, equal[0])
                    report.did(f"constant {value.name} is {equal[0].name}")


def _split(values: list[Value], feature: Any) -> list[list[Value]]:
    """Group values by a feature that is worked out only where there is more than one value."""
    if len(values) < 2:
        return []
    groups: dict[Any, list[Value]] = defaultdict(list)
    for value in values:
        groups[feature(value.const_value)].append(value)
    return [group for group in groups.values() if len(group) > 1]


def _sampled(tensor: ir.TensorProtocol) -> bytes:
    if tensor.nbytes <= 2 * _SAMPLE:
        return tensor.tobytes()
    flat = tensor.numpy().reshape(-1)
    ends = [flat[:_SAMPLE], flat[-_SAMPLE:]]
    return b"".join(part.tobytes() for part in ends)


def _digest(tensor: ir.TensorProtocol) -> bytes:
    return hashlib.blake2b(tensor.tobytes()).digest()
