"""Decides which values are quantized, how, and why every other one is not."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.errors import UsageError
from qgraph.graph import Graph
from qgraph.passes.placement.layers import clip_bounds, weight_axis
from qgraph.passes.placement.nodes import place_nodes
from qgraph.passes.placement.rules import Rules, Wishes
from qgraph.passes.placement.units import place_units
from qgraph.passes.placement.write import write_plan
from qgraph.pipeline import Pass, PassReport
from qgraph.target import Target

__all__ = ["PlanQuantization", "clip_bounds", "weight_axis"]

_PLACEMENTS = {"nodes": place_nodes, "units": place_units}


@dataclass(frozen=True)
class PlanQuantization(Pass):
    """Intersect what the target accepts with what the recipe wants.

    Every node gets a precision and a reason; every value that is quantized gets a spec and a
    group (values of one group share an encoding); every other float value gets a reason.

    Attributes:
        keep_first: Leave the first Conv, Gemm or MatMul in float.
        keep_last: Leave the last one in float.
        attention: Quantize products of two activations where the target does.
        min_channels: Leave dense convolutions with fewer input or output channels in float; below
            16, GPUs often gain nothing by int8.
        precision: What activations are quantized for, where the target has several; the compile's.
    """

    keep_first: bool = False
    keep_last: bool = False
    attention: bool = True
    min_channels: int = 0
    precision: str = "int8"

    name: ClassVar[str] = "plan"
    gives: ClassVar[frozenset[str]] = frozenset({"plan"})

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Write `facts.plan`; the graph stays as it is."""
        target = context.target
        if not isinstance(target, Target):
            raise UsageError("plan needs a target", fix="pass Context(target=...)")
        if graph.facts.quantized:
            raise UsageError("the graph is quantized already", fix="start from the float model")
        graph.name_nodes()
        if any(out.dtype is None for node in graph.nodes() for out in node.outputs):
            onnx_io.infer_shapes(graph)
        wishes = Wishes(
            context.exclude, self.keep_first, self.keep_last, self.attention, self.min_channels
        )
        rules = Rules(graph, target.at(self.precision), wishes)
        graph.facts.plan = write_plan(rules, _PLACEMENTS[target.placement](rules), self.precision)
        report = PassReport()
        for name, (precision, reason) in graph.facts.plan.nodes.items():
            if precision == "float":
                report.refuse(name, reason)
            else:
                report.details.append(f"{name}: {precision}")
        return report
