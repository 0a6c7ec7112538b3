"""What nothing reads goes away: nodes, initializers, optional outputs, functions, imports."""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import onnx
import onnx_ir as ir

from qgraph.context import Context
from qgraph.graph import Graph, Node
from qgraph.pipeline import Pass, PassReport
from qgraph.traversal import bodies

# Operators of these domains are known to do nothing but compute their outputs.
_PURE = frozenset({"", "ai.onnx.ml", "com.microsoft"})


@dataclass(frozen=True)
class DropDead(Pass):
    """Drop what has no influence on any graph output.

    Before:
        a = Relu(x)
        unread = Exp(x)
        y, mask = MaxPool <kernel_shape = [2, 2]> (a)

    After:
        a = Relu(x)
        y = MaxPool <kernel_shape = [2, 2]> (a)

    When:
        Nodes none of whose outputs are read, subgraphs and what only they read included;
        initializers, dense and sparse, that nobody reads; optional outputs that nobody reads;
        local functions that nobody calls; imports of domains that nobody uses.

    Leaves alone:
        Graph inputs and outputs; the import of the default domain; unread nodes of domains that
        are not known to be free of effects.

    Numerics:
        Exact.

    Source:
        https://onnx.ai/onnx/repo-docs/IR.html: operators have no effects but their outputs, and
        an output is optional where the operator's schema says so.
    """

    name: ClassVar[str] = "drop_dead"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Drop in one sweep, last nodes first."""
        report = PassReport()
        functions = {function.domain for function in graph.model.functions.values()}
        _drop_nodes(graph, graph.main, _PURE | functions, report)
        initializers = graph.drop_unread_initializers() + _drop_sparse(graph)
        if initializers:
            report.changed += initializers
            report.details.append(f"{initializers} initializers")
        _drop_functions(graph, report)
        _drop_imports(graph, report)
        return report


def _drop_nodes(graph: Graph, owner: ir.Graph, pure: frozenset[str], report: PassReport) -> None:
    for node in reversed(owner):
        if node.domain in pure and not any(map(_is_read, node.outputs)):
            report.did(f"{node.op_type} {node.name}")
            graph.remove(node)
            continue
        if len(node.outputs) > 1:
            _drop_outputs(graph, node, report)
        # What only a dead node of a subgraph reads comes before, so it is still to be visited.
        for attr in node.attributes.values():
            for body in bodies(attr):
                _drop_nodes(graph, body, pure, report)


def _is_read(value: ir.Value) -> bool:
    return value.is_graph_output() or bool(value.uses())


def _drop_outputs(graph: Graph, node: Node, report: PassReport) -> None:
    optional = _optional_outputs(node.op_type, graph.opset) if not node.domain else frozenset()
    for index, value in enumerate(node.outputs):
        if index in optional and value.name and not _is_read(value):
            report.did(f"output {value.name} of {node.op_type} {node.name}")
            value.name = ""
    while len(node.outputs) > 1 and not node.outputs[-1].name:
        node.resize_outputs(len(node.outputs) - 1)


@cache
def _optional_outputs(op_type: str, opset: int) -> frozenset[int]:
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return frozenset()
    option = onnx.defs.OpSchema.FormalParameterOption.Optional
    return frozenset(i for i, output in enumerate(schema.outputs) if output.option == option)


def _drop_sparse(graph: Graph) -> int:
    if not graph.sparse:
        return 0
    read = {value.name for node in graph.walk() for value in node.inputs if value is not None}
    read.update(value.name for value in graph.main.outputs)
    unread = [name for name in graph.sparse if name not in read]
    for name in unread:
        del graph.sparse[name]
    return len(unread)


def _drop_functions(graph: Graph, report: PassReport) -> None:
    functions = graph.model.functions
    called = set()
    todo = list(graph.walk()) if functions else []
    while todo:
        node = todo.pop()
        key = node.op_identifier()
        if key in functions and key not in called:
            called.add(key)
            todo.extend(functions[key].all_nodes())
    for key in [key for key in functions if key not in called]:
        report.did(f"function {key[0]}.{key[1]}")
        del functions[key]


def _drop_imports(graph: Graph, report: PassReport) -> None:
    imports = graph.model.opset_imports
    if len(imports) < 2:
        return
    used = {"", "ai.onnx"}
    used.update(node.domain for node in graph.walk())
    for function in graph.model.functions.values():
        used.add(function.domain)
        used.update(node.domain for node in function.all_nodes())
    for domain in [domain for domain in imports if domain not in used]:
        report.did(f"import of {domain}")
        del imports[domain]
