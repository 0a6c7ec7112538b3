"""A Slice that leaves out axes gets them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.passes.rewrites._qdq import label
from qgraph.pipeline import Pass, PassReport


@dataclass(frozen=True)
class SliceAxes(Pass):
    """Write out the axes of a Slice that has none, and fewer starts than the tensor has axes.

    Before:
        y = Slice(x, starts, ends)              # starts: [1], x: [4, 8]

    After:
        y = Slice(x, starts, ends, axes)        # axes: [0]

    When:
        There are no axes, and fewer starts than axes, or the tensor's rank is unknown.

    Leaves alone:
        Starts whose number is unknown; a start for every axis, which needs no axes.

    Numerics:
        Exact.

    Source:
        https://onnx.ai/onnx/operators/onnx__Slice.html: left out, axes are 0, 1 and so on; version 1
        counted up to the number of starts, and models that were brought to newer versions still do.
        onnxruntime takes both, TensorRT-RTX 1.7.1.116 refuses fewer starts than axes.
    """

    name: ClassVar[str] = "slice_axes"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite every such node."""
        report = PassReport()
        for node in graph.walk():
            if not graph.is_standard(node, "Slice") or len(node.inputs) < 3:
                continue
            if len(node.inputs) > 3 and node.inputs[3] is not None:
                continue
            rank = graph.shape(node.inputs[0])
            starts = graph.shape(node.inputs[1])
            count = starts[0] if starts and isinstance(starts[0], int) else None
            if count is None:
                report.refuse(label(node), "the number of its starts is unknown")
            elif rank is None or count < len(rank):
                axes = graph.constant(f"{label(node)}_axes", np.arange(count, dtype=np.int64))
                graph.set_input(node, 3, axes)
                report.did(f"{label(node)}: {count} axes")
        return report
