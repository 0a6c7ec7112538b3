"""Shape inference as a pass of its own, for the end of a chain of rewrites."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.pipeline import Pass, PassReport


@dataclass(frozen=True)
class InferShapes(Pass):
    """Fill in the types and shapes of values that rewrites have made; never fails a compile."""

    name: ClassVar[str] = "infer_shapes"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Infer; a failure is a warning."""
        report = PassReport()
        problem = onnx_io.infer_shapes(graph)
        if problem is not None:
            report.warnings.append(problem)
        return report
