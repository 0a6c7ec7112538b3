"""A vector in front of a stack of matrices becomes a matrix of one row."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qgraph.context import Context
from qgraph.graph import Graph, Node
from qgraph.passes.rewrites._qdq import label
from qgraph.pipeline import Pass, PassReport


@dataclass(frozen=True)
class VectorMatMul(Pass):
    """Multiply a vector by a stack of matrices as a matrix of one row.

    Before:
        y = MatMul(x, w)                        # x: [K], w: [B, K, N]

    After:
        row = Unsqueeze(x, [0])
        rows = MatMul(row, w)                   # [B, 1, N]
        y = Squeeze(rows, [-2])

    When:
        The first operand has one axis and the second more than two.

    Leaves alone:
        Everything else, vectors by plain matrices included, and operands of unknown rank.

    Numerics:
        Exact.

    Source:
        https://onnx.ai/onnx/operators/onnx__MatMul.html: as numpy.matmul. TensorRT-RTX 1.7.1.116
        fails to reshape such a product.
    """

    name: ClassVar[str] = "vector_matmul"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite every such node."""
        report = PassReport()
        for node in list(graph.walk()):
            if graph.is_standard(node, "MatMul") and _fits(graph, node):
                _rewrite(graph, node)
                report.did(label(node))
        return report


def _fits(graph: Graph, node: Node) -> bool:
    first, second = (graph.shape(value) for value in node.inputs)
    return first is not None and second is not None and len(first) == 1 and len(second) > 2


def _rewrite(graph: Graph, node: Node) -> None:
    name, out = label(node), node.outputs[0]
    front = graph.constant(f"{name}_front", np.array([0], np.int64))
    back = graph.constant(f"{name}_row", np.array([-2], np.int64))
    row = graph.insert("Unsqueeze", [node.inputs[0], front], before=node, name=f"{name}_row")
    rows = graph.insert(
        "MatMul", [row.outputs[0], node.inputs[1]], before=node, name=f"{name}_rows"
    )
    made = graph.insert("Squeeze", [rows.outputs[0], back], before=node, name=f"{name}_y", like=out)
    graph.replace(out, made.outputs[0])
    graph.remove(node)
