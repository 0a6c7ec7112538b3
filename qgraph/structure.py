"""Checks that a graph hangs together: written before read, one writer a name."""

import onnx_ir as ir

from qgraph.errors import ModelError
from qgraph.graph import Graph, Node, Value


def check_structure(graph: Graph) -> None:
    """Check the outermost graph and the bodies of If, Loop and Scan.

    Every input of a node is a graph input, a constant or the result of an earlier node, here or
    in an enclosing graph; no two values that can see each other share a name, and no two nodes of
    one graph; every constant has data; every graph output is written.

    Raises:
        ModelError: The first thing that is wrong.
    """
    _check(graph, graph.main, [])


class _Scope:
    """Values defined in one graph so far, and all names in use there."""

    def __init__(self) -> None:
        self.values: set[Value] = set()
        self.names: set[str] = set()
        self.nodes: set[str] = set()


def _check(graph: Graph, body: ir.Graph, outer: list[_Scope]) -> None:
    here = _Scope()
    scopes = [here, *outer]
    for value in body.inputs:
        _define(value, scopes)
    for name, value in body.initializers.items():
        if value.name != name:
            raise ModelError(f"constant {value.name!r} is registered as {name!r}")
        if value.const_value is None:
            raise ModelError(f"constant {name!r} has no data")
        if value not in here.values:
            _define(value, scopes)
    for node in body:
        _check_node(graph, node, scopes)
    for value in body.outputs:
        if not _known(graph, value, scopes):
            raise ModelError(f"graph output {value.name!r} is never written")


def _check_node(graph: Graph, node: Node, scopes: list[_Scope]) -> None:
    here = scopes[0]
    if node.name and node.name in here.nodes:
        raise ModelError(f"two nodes are called {node.name!r}")
    here.nodes.add(node.name or "")
    for value in node.inputs:
        if value is not None and not _known(graph, value, scopes):
            when = "before it is written" if value.producer() else "which nothing writes"
            label = node.name or f"{node.op_type} that writes {node.outputs[0].name!r}"
            raise ModelError(f"reads {value.name!r} {when}", where=label)
    for attr in node.attributes.values():
        for inner in bodies_of(attr):
            _check(graph, inner, scopes)
    for value in node.outputs:
        _define(value, scopes)


def _known(graph: Graph, value: Value, scopes: list[_Scope]) -> bool:
    return any(value in scope.values for scope in scopes) or value.name in graph.sparse


def _define(value: Value, scopes: list[_Scope]) -> None:
    scopes[0].values.add(value)
    if not value.name:
        return
    if any(value.name in scope.names for scope in scopes):
        raise ModelError(f"two values are called {value.name!r}")
    scopes[0].names.add(value.name)


def bodies_of(attr: ir.Attr) -> list[ir.Graph]:
    """Return the graphs that an attribute holds: bodies of If, Loop and Scan."""
    if attr.is_ref():
        return []
    if attr.type == ir.AttributeType.GRAPH:
        return [attr.as_graph()]
    return list(attr.as_graphs()) if attr.type == ir.AttributeType.GRAPHS else []
