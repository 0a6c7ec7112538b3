"""A graph as text, one line a node, for `--print-after` and error messages."""

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from qgraph import text
from qgraph.graph import Graph, Node, Value
from qgraph.structure import bodies_of

_INDENT = "  "
_LONGEST = 8


def graph_text(graph: Graph) -> str:
    """Return a graph as text: inputs, constants, nodes in order, outputs.

    Weights are shown by type and shape, small constants with their values; bodies of If, Loop and
    Scan are indented below their node. Control characters in names are escaped.
    """
    return "\n".join(_lines(graph, graph.main, ""))


def value_text(value: Value | None) -> str:
    """Return name, type and shape of a value: `x float32[1, 3, ?]`; `-` for an omitted one."""
    if value is None:
        return "-"
    dtype = text.dtype(value.dtype.name) if value.dtype is not None else "?"
    return f"{text.printable(value.name or '?')} {dtype}{text.shape(Graph.shape(value))}"


def node_text(node: Node) -> str:
    """Return a node as `out = Op(in, in) {attribute=value}  # name`."""
    outputs = ", ".join(text.printable(out.name or "-") for out in node.outputs)
    inputs = ", ".join("-" if v is None else text.printable(v.name or "?") for v in node.inputs)
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    attributes = [
        f"{name}={_attribute(attr)}"
        for name, attr in sorted(node.attributes.items())
        if not bodies_of(attr)
    ]
    braces = f" {{{', '.join(attributes)}}}" if attributes else ""
    name = f"  # {node.name}" if node.name else ""
    return text.printable(f"{outputs} = {op}({inputs}){braces}{name}")


def _lines(graph: Graph, body: ir.Graph, indent: str) -> Iterator[str]:
    for value in body.inputs:
        yield f"{indent}input {value_text(value)}"
    for value in body.initializers.values():
        yield f"{indent}constant {value_text(value)}{_content(graph, value)}"
    for node in body:
        types = "; ".join(value_text(out).partition(" ")[2] for out in node.outputs)
        yield f"{indent}{node_text(node)}  : {types}"
        for name, attr in node.attributes.items():
            for number, inner in enumerate(bodies_of(attr)):
                yield f"{indent}{_INDENT}{name}[{number}]:"
                yield from _lines(graph, inner, indent + 2 * _INDENT)
    for value in body.outputs:
        yield f"{indent}output {value_text(value)}"


def _content(graph: Graph, value: Value) -> str:
    tensor = value.const_value
    if tensor is None or tensor.size > _LONGEST:
        return ""
    return f" = {_short(tensor.numpy().tolist())}"


def _attribute(attr: ir.Attr) -> str:
    if attr.is_ref():
        return f"@{attr.ref_attr_name}"
    if attr.type == ir.AttributeType.TENSOR:
        tensor = attr.as_tensor()
        if tensor.size <= _LONGEST:
            return _short(tensor.numpy().tolist())
        return f"{text.dtype(tensor.dtype.name)}{text.shape(tensor.shape.numpy())}"
    return _short(attr.value)


def _short(value: Any) -> str:
    shown = repr(list(value) if isinstance(value, tuple) else value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
