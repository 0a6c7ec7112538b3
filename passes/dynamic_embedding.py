"""Stores embedding tables in int8, with one scale a row that is gathered along with it."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qgraph.encoding import Spec
from qgraph.graph import Graph, Node, Value
from qgraph.passes.weight_forms._site import too_old
from qgraph.passes.weight_forms.gather import gather_dequantize
from qgraph.passes.weights import WeightQuantizer

ROW = Spec("int8", symmetric=True, axis=1, narrow=True)


@dataclass(frozen=True, eq=False)
class Table:
    """A table's constants: codes int8 [rows, width], scale float32 [rows, 1], relative error."""

    codes: Value
    scale: Value
    loss: float


def table_refusal(graph: Graph, node: Node, min_elements: int) -> str | None:
    """Say why the constant that a Gather reads stays in float, or None."""
    table = node.inputs[0]
    tensor = graph.tensor(table)
    assert table is not None and tensor is not None
    if node.graph is not graph.main:
        return "inside the body of another node"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its table is {tensor.dtype.name.lower()}, not float32"
    if len(tensor.shape) != 2 or graph.attribute(node, "axis", 0) not in (0, -2):
        return "it does not gather rows of a table"
    if tensor.size < min_elements:
        return f"its table of {tensor.size} elements is small"
    old = too_old(graph, "scales a row")
    if old:
        return old
    others = [n for n in graph.readers(table) if not graph.is_standard(n, "Gather")]
    if others or table.is_graph_output():
        reader = f"{others[0].op_type} {others[0].name}" if others else "a graph output"
        return f"its table is also read by {reader}, which needs it in float"
    if not np.isfinite(tensor.numpy()).all():
        return "its table is not finite"
    return None


def store_table(
    graph: Graph, node: Node, solve: WeightQuantizer, tables: dict[Value, Table]
) -> float:
    """Make a Gather that `table_refusal` let through read codes; return the relative error.

    Args:
        graph: Graph to rewrite.
        node: The Gather; it is replaced by two Gathers and a DequantizeLinear.
        solve: Weight quantizer; rows are its output channels.
        tables: What was quantized before, by table; added to.
    """
    source = node.inputs[0]
    array = graph.array(source)
    assert source is not None and array is not None
    if source not in tables:
        codes, encoding, loss = solve(array.T, ROW, None)
        name = source.name or "table"
        tables[source] = Table(
            graph.constant(f"{name}_codes", np.ascontiguousarray(codes.T)),
            graph.constant(f"{name}_scale", encoding.scale.reshape(-1, 1)),
            loss,
        )
    table = tables[source]
    out = gather_dequantize(graph, node, [table.codes, table.scale], array.shape[1])
    graph.replace(node.outputs[0], out)
    graph.remove(node)
    return table.loss
