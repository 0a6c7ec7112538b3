"""Nodes that return their input as it is go away."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.passes.cleanup._no_ops import passed_through
from qgraph.passes.cleanup._shapes import replaceable
from qgraph.pipeline import Pass, PassReport


@dataclass(frozen=True)
class DropIdentities(Pass):
    """Drop nodes that do nothing.

    Before:
        a = Identity(x)
        b = Mul(a, 1)
        c = Cast <to = float> (b)
        y = Relu(c)

    After:
        y = Relu(x)

    When:
        Identity; Dropout outside training; Cast and CastLike to the type the value has; Add and
        Sub of 0, Mul and Div by 1, Pow to 1, where broadcasting does not change the shape; Slice
        that takes everything; Pad by nothing; Tile by 1; Concat, Sum, Max, Min and Mean of one
        input; Reshape and Expand to the shape the value has; Transpose in the given order;
        Flatten of a matrix at axis 1; Unsqueeze of no axes; Clip without bounds; reductions of no
        axes where `noop_with_empty_axes` is set; Not(Not), Neg(Neg); the second of two Relu, Abs,
        Sign, Ceil, Floor or Round. Inside subgraphs too.

    Leaves alone:
        A node between a graph input, a constant, another graph output or a value of an outer
        graph and a graph output: that output needs a node to give it its name.

    Numerics:
        Exact, but for the sign of zero: x + 0 turns -0 into 0, and x does not.

    Source:
        https://onnx.ai/onnx/operators/, the page of each operator.
    """

    name: ClassVar[str] = "drop_identities"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Drop in one sweep, first nodes first."""
        report = PassReport()
        for node in graph.walk():
            source = passed_through(graph, node)
            if source is None or not replaceable(node.outputs[0], source):
                continue
            report.did(f"{node.op_type} {node.name}")
            graph.replace(node.outputs[0], source)
            graph.remove(node)
        return report
