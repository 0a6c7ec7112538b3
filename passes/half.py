"""Whole-graph float16 or bfloat16, with range-checked casts."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.facts import Plan
from qgraph.graph import Graph
from qgraph.passes.half_choose import HALF, Chooser, Limits
from qgraph.passes.half_rewrite import rewrite
from qgraph.passes.half_weights import store_weights
from qgraph.pipeline import Pass, PassReport

PRECISION = {"float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Half(Pass):
    """Compute in float16 or bfloat16 where it is safe, and in float32 elsewhere.

    Graph inputs and outputs keep their types. A node stays in float32, with Casts around it,
    where its operator has no half kernel on the target, where it is excluded, and where one of
    its values does not fit: its magnitude exceeds the largest finite half number (a constant's
    own; for results the largest on the data, times `headroom`), or all of it lies below the
    smallest normal one, where precision fades and engines may flush to zero. A tensor that only
    partly underflows is converted, what vanishes being small beside its other elements, and so
    is a bias that vanishes beside the products it is added to. Infinities
    in constants stay infinite; a result that is infinite on the data stays in float32.

    Bodies of If, Loop and Scan, custom operators, random numbers and integer operators stay in
    float32. Each value is cast at most once per direction. Products with quantized weights and
    float data (MatMulNBits, DequantizeLinear of constants) are computed in the type: of their
    constants, scales and float zero points are rounded to it, and so are the scales of
    QuantizeLinear and DequantizeLinear with codes in float8.

    Where the target computes nothing in the type, or with `weights_only`, constants are stored
    in it with a Cast to float32 behind them, and everything is computed in float32.

    Attributes:
        dtype: `float16` or `bfloat16`.
        headroom: How many times larger than on the calibration data results may get.
        weights_only: Only store constants in the type.
        trusted: Look for overflow in constants alone: the results' ranges were looked at before.
        min_elements: Smallest constant worth a Cast of its own when only weights are stored.

    Source: number formats: IEEE 754-2008 binary16; bfloat16 as ONNX defines it in
        https://onnx.ai/onnx/technical/float8.html and `onnx.proto`.
    """

    dtype: Literal["float16", "bfloat16"] = "float16"
    headroom: float = 2.0
    weights_only: bool = False
    trusted: bool = False
    min_elements: int = 256

    name: ClassVar[str] = "half"
    gives: ClassVar[frozenset[str]] = frozenset({"plan"})
    breaks: ClassVar[frozenset[str]] = frozenset({"units", "attention"})
    numerics = "rounding"

    def __post_init__(self) -> None:
        """Refuse options that make no sense before anything runs."""
        if self.dtype not in HALF:
            raise ValueError(f"dtype is {self.dtype!r}, not float16 or bfloat16")
        if not self.headroom >= 1:
            raise ValueError(f"headroom is {self.headroom}, it must be at least 1")

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite the graph; `facts.plan.nodes` tells each node's precision and reason.

        Raises:
            DataError: The calibration data makes a value NaN.
            EngineError: onnxruntime is missing or refuses the graph.
        """
        graph.name_nodes()
        if any(out.dtype is None for node in graph.nodes() for out in node.outputs):
            onnx_io.infer_shapes(graph)
        without = None
        if context.target is not None:
            without = context.target.half_ops.get(PRECISION[self.dtype], frozenset())
        limits = Limits(self.dtype)
        if self.weights_only or (context.target is not None and without is None):
            return self._store(graph, context, limits)
        chooser = Chooser(graph, context, limits, self.headroom, without or frozenset())
        chooser.choose(results=not self.trusted)
        return self._convert(graph, chooser)

    def _convert(self, graph: Graph, chooser: Chooser) -> PassReport:
        report = chooser.report
        label = PRECISION[self.dtype]
        before = graph.facts.plan or Plan()
        plan = replace(before, nodes={})
        for node in graph.nodes():
            if node in chooser.half:
                plan.nodes[node.name or ""] = (label, f"computes in {self.dtype}")
                report.did(f"{node.name or ''}: {self.dtype}")
            elif node in chooser.follows:
                plan.nodes[node.name or ""] = ("float", chooser.follows[node])
            elif node in chooser.reasons:
                plan.nodes[node.name or ""] = ("float", chooser.reasons[node])
                report.refuse(node.name or "", chooser.reasons[node])
        for name, (precision, reason) in before.nodes.items():
            if precision != "float":
                plan.nodes[name] = (precision, reason)
            elif name in plan.nodes:
                kind, why = plan.nodes[name]
                plan.nodes[name] = (kind, f"{reason}; {why}")
        rewrite(graph, chooser.half, HALF[self.dtype])
        graph.facts.plan = plan
        return report

    def _store(self, graph: Graph, context: Context, limits: Limits) -> PassReport:
        report = PassReport()
        plan = Plan()
        readers = store_weights(
            graph, HALF[self.dtype], self.min_elements, limits.misfit, context.exclude, report
        )
        for node in readers:
            reason = f"computes in float32; its weights are stored in {self.dtype}"
            plan.nodes[node.name or ""] = ("float", reason)
        graph.facts.plan = plan
        return report
