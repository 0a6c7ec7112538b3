"""Operators that ONNX defines by others are written in those."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qgraph.context import Context
from qgraph.graph import Graph, Node, Value
from qgraph.onnx_functions import function_body
from qgraph.passes.rewrites._qdq import label
from qgraph.pipeline import Pass, PassReport


def _always(node: Node) -> bool:
    return True


def _more_outputs(node: Node) -> bool:
    return any(list(out.uses()) or out.is_graph_output() for out in node.outputs[1:])


# When a node is expanded, by operator.
EXPANDED: dict[str, Callable[[Node], bool]] = {
    "Attention": _always,
    "CausalConvWithState": _always,
    "CenterCropPad": _always,
    "LayerNormalization": _more_outputs,
    "SwiGLU": _always,
}


@dataclass(frozen=True)
class ExpandFunctions(Pass):
    """Write operators as ONNX defines them, in terms of others.

    Before:
        y = Attention(q, k, v)

    After:
        t = Transpose<perm = [0, 1, 3, 2]>(k)   # and so on: scales, MatMul, Softmax, MatMul
        y = MatMul(p, v)

    When:
        The operator is one of `EXPANDED`: LayerNormalization only where its mean or deviation is
        read.

    Leaves alone:
        Nodes whose definition needs a loop or a branch, or whose types have none.

    Numerics:
        Exact: the definition is ONNX's own.

    Source:
        https://onnx.ai/onnx/operators/onnx__Attention.html, "Function Body". TensorRT-RTX 1.7.1.116
        has no kernel for Attention in float32, and none for heads of 8; it takes no softcap, past,
        further outputs, or a mask beside is_causal.
    """

    name: ClassVar[str] = "expand_functions"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Expand every such node."""
        report = PassReport()
        for node in list(graph.walk()):
            if not graph.is_standard(node, *EXPANDED) or not EXPANDED[node.op_type](node):
                continue
            body = function_body(node, graph.opset)
            reason = _unusable(body)
            if reason is not None or body is None:
                report.refuse(label(node), reason or "")
                continue
            where, made = label(node), _splice(graph, node, body)
            report.did(f"{where}: {node.op_type} became {made} nodes")
        return report


def _unusable(body: ir.Graph | None) -> str | None:
    if body is None:
        return "ONNX defines no other operators for it"
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    if any(attr.type in kinds for node in body for attr in node.attributes.values()):
        return "its definition needs a loop or a branch"
    return None


def _splice(graph: Graph, node: Node, body: ir.Graph) -> int:
    """Put the nodes of a definition in place of the node; return their number."""
    values: dict[Value, Value | None] = {}
    by_name = {value.name: value for value in node.inputs if value is not None}
    values.update({inner: by_name[inner.name] for inner in body.inputs})
    for value in body.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        values[value] = graph.constant(value.name or "constant", tensor.numpy())
    for inner in body:
        copied = graph.insert(
            inner.op_type,
            [None if value is None else values[value] for value in inner.inputs],
            before=node,
            attributes=dict(inner.attributes),
            name=f"{label(node)}_{inner.op_type}",
            outputs=len(inner.outputs),
            domain=inner.domain,
        )
        values.update(zip(inner.outputs, copied.outputs, strict=True))
    results = {inner.name: values[inner] for inner in body.outputs}
    for out in list(node.outputs):
        result = results.get(out.name)
        if result is not None:
            graph.replace(out, result)
    graph.remove(node)
    return len(body)
