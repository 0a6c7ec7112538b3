"""Stores constants in half precision, with a Cast to float32 behind them."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.passes.half_rewrite import half_constant
from qgraph.passes.half_types import QUANTIZED
from qgraph.pipeline import PassReport


def store_weights(
    graph: Graph,
    dtype: ir.DataType,
    min_elements: int,
    misfit: Callable[[NDArray[Any]], str | None],
    exclude: tuple[str, ...],
    report: PassReport,
) -> list[Node]:
    """Store every large float32 constant in `dtype`; return the nodes that read one.

    Those in bodies of If, Loop and Scan move to the outermost graph.
    Constants of excluded, custom and quantized operators stay as they are, as do those that
    are graph outputs or don't fit.

    Args:
        graph: Graph to rewrite.
        dtype: FLOAT16 or BFLOAT16.
        min_elements: Smaller constants stay float32.
        misfit: Says why an array does not fit into `dtype`, or None.
        exclude: Globs of node names and operators whose constants stay float32.
        report: Where rewrites and refusals are noted.
    """
    readers: dict[Node, None] = {}
    for value in _constants(graph):
        tensor = graph.tensor(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < min_elements:
            continue
        nodes = list(dict.fromkeys(graph.readers(value)))
        name = value.name or ""
        reason = _refusal(graph, value, nodes, exclude)
        if reason is None and not value.is_graph_output():
            reason = misfit(tensor.numpy())
        if reason is not None:
            report.refuse(name, reason)
            continue
        if not nodes:
            continue
        copy = half_constant(graph, value, dtype)
        cast = graph.insert(
            "Cast",
            [copy],
            before=next(iter(graph.main)),
            attributes={"to": int(ir.DataType.FLOAT)},
            name=f"{name}_float32",
            like=value,
        )
        graph.replace(value, cast.outputs[0])
        readers.update(dict.fromkeys(nodes))
        report.did(f"{name}: stored in {dtype.name.lower()}")
    graph.remove_unread([n for n in graph.walk() if graph.is_standard(n, "Constant")])
    graph.drop_unread_initializers()
    return list(readers)


def _constants(graph: Graph) -> list[Value]:
    """Constants of the graph and of all bodies, which see values of the outermost graph."""
    kept = [value for each in graph.graphs() for value in each.initializers.values()]
    made = [n.outputs[0] for n in graph.walk() if graph.is_standard(n, "Constant")]
    return kept + made


def _refusal(
    graph: Graph, value: Value, readers: list[Node], exclude: tuple[str, ...]
) -> str | None:
    if value.is_graph_output():
        return "it is a graph output"
    for node in readers:
        for pattern in exclude:
            if fnmatchcase(node.name or "", pattern) or fnmatchcase(node.op_type, pattern):
                return f"read by {node.name}, excluded by {pattern!r}"
        if not graph.is_standard(node):
            return f"read by {node.name}, a custom operator of domain {node.domain!r}"
        if node.op_type in QUANTIZED:
            return f"read by {node.name}, part of a quantized model"
    return None
