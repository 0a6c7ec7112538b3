"""Decides which values are quantized, how, and why every other one is not."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.encoding import Spec
from qgraph.errors import UsageError
from qgraph.facts import Placement, Plan
from qgraph.graph import Graph, Node, Value
from qgraph.pipeline import Pass, PassReport
from qgraph.target import OpRule, Target


@dataclass(frozen=True)
class PlanQuantization(Pass):
    """Intersect what the target accepts with what the recipe wants.

    Every node gets a precision and a reason; every value that is quantized gets a spec and a
    group (values of one group share an encoding); every other float value gets a reason.

    Attributes:
        keep_first: Leave the first Conv, Gemm or MatMul in float.
        keep_last: Leave the last one in float.
    """

    keep_first: bool = False
    keep_last: bool = False

    name: ClassVar[str] = "plan"
    gives: ClassVar[frozenset[str]] = frozenset({"plan"})

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Write `facts.plan`; the graph stays as it is."""
        if not isinstance(context.target, Target):
            raise UsageError("plan needs a target", fix="pass Context(target=...)")
        if graph.facts.quantized:
            raise UsageError("the graph is quantized already", fix="start from the float model")
        graph.name_nodes()
        if any(out.dtype is None for node in graph.nodes() for out in node.outputs):
            onnx_io.infer_shapes(graph)
        planner = _Planner(graph, context.target, context.exclude, self)
        graph.facts.plan = planner.plan()
        report = PassReport()
        for name, (precision, reason) in graph.facts.plan.nodes.items():
            if precision == "float":
                report.refuse(name, reason)
            else:
                report.details.append(f"{name}: {precision}")
        return report


class _Planner:
    def __init__(
        self, graph: Graph, target: Target, exclude: tuple[str, ...], options: PlanQuantization
    ) -> None:
        self.graph, self.target, self.exclude = graph, target, exclude
        self.chosen: dict[Node, OpRule] = {}
        self.reasons: dict[Node, str] = {}
        # Values whose producer hands out codes.
        self.coded: set[Value] = set()
        # Nodes that take codes whatever else is decided: those that start, and what leads to them.
        self.eaters: set[Node] = set()
        self._weight_reasons: dict[Node, str | None] = {}
        anchors = [n for n in graph.nodes("Conv", "Gemm", "MatMul") if self._weight_ok(n) is None]
        self.kept: dict[Node, str] = {}
        if options.keep_first and anchors:
            self.kept[anchors[0]] = "first layer, kept by plan.keep_first"
        if options.keep_last and anchors:
            self.kept[anchors[-1]] = "last layer, kept by plan.keep_last"

    def plan(self) -> Plan:
        for node in reversed(self.graph.main):
            if self._eats(node):
                self.eaters.add(node)
        for node in self.graph.nodes():
            self._choose(node)
        self._drop_useless_tails()
        return self._write()

    # -- which nodes -----------------------------------------------------------------------------

    def _choose(self, node: Node) -> None:
        reason = self._refusal(node)
        if reason is not None:
            self.reasons[node] = reason
            return
        rule = self.target.rule(node.op_type)
        assert rule is not None
        if rule.output == "float" and self._only_eaten(self.result(node)):
            rule = replace(rule, output="quantized")
        self.chosen[node] = rule
        if rule.output != "float":
            self.coded.add(self.result(node))

    def _eats(self, node: Node) -> bool:
        """Whether `node` runs in integers on its own account, or hands codes on to such nodes."""
        rule = self.target.rule(node.op_type)
        if rule is None or not self.graph.is_standard(node):
            return False
        if rule.starts:
            return self._refusal(node) is None
        # With several activations (Concat) it depends on the others too.
        several = sum(rule.role(i) == "activation" for i in range(len(node.inputs))) != 1
        if rule.output != "same" or several or not self._only_eaten(self.result(node)):
            return False
        value = node.inputs[0]
        return value is not None and self._refusal(node, {value}) is None

    def _only_eaten(self, value: Value) -> bool:
        """Whether all readers of `value`, and at least one, take codes as activations."""
        uses = list(value.uses())
        return (
            bool(uses)
            and not value.is_graph_output()
            and all(self._reads_codes(use.node, use.idx) for use in uses)
        )

    def _reads_codes(self, node: Node, index: int) -> bool:
        rule = self.target.rule(node.op_type)
        return node in self.eaters and rule is not None and rule.role(index) == "activation"

    def _refusal(self, node: Node, coded: Collection[Value] | None = None) -> str | None:
        """Say why `node` stays in float, or None if it can be quantized.

        Args:
            node: The node.
            coded: Values that count as coming quantized; None for those chosen so far.
        """
        target = self.target
        coded = self.coded if coded is None else coded
        if not self.graph.is_standard(node):
            return f"custom operator of domain {node.domain!r}"
        rule = target.rule(node.op_type)
        if rule is None:
            return target.left_float.get(
                node.op_type, f"target {target.name} has no integer {node.op_type}"
            )
        for pattern in self.exclude:
            if fnmatchcase(node.name or "", pattern) or fnmatchcase(node.op_type, pattern):
                return f"excluded by {pattern!r}"
        if node in self.kept:
            return self.kept[node]
        data = [v for i, v in enumerate(node.inputs) if v and rule.role(i) != "other"]
        for value in [*data, node.outputs[0]]:
            if value.dtype is not None and value.dtype != ir.DataType.FLOAT:
                return f"works on {value.dtype.name.lower()}, not float32"
        if node.outputs[0].is_graph_output() and rule.output != "float":
            return "its result is a graph output, which stays in float"
        if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
            return "its second output is used"
        if "weight" in rule.roles:
            return self._weight_ok(node)
        activations = [v for v in data if not self._is_constant(v)]
        if len(activations) != len(data):
            return "one operand is a constant"
        if not rule.starts:
            arriving = [v for v in activations if v in coded]
            if not arriving:
                return "no operand arrives quantized"
            if rule.output == "same" and len(arriving) != len(activations):
                return "not every operand arrives quantized"
        if self.result(node).is_graph_output() and rule.output != "float":
            return "its result is a graph output, which stays in float"
        return None

    def _weight_ok(self, node: Node) -> str | None:
        """Say why the weights of `node` can't be quantized; looked at once, they may be large."""
        if node not in self._weight_reasons:
            self._weight_reasons[node] = self._weight_refusal(node)
        return self._weight_reasons[node]

    def _weight_refusal(self, node: Node) -> str | None:
        if self.result(node).is_graph_output():
            rule = self.target.rule(node.op_type)
            if rule is None or rule.output != "float":
                return "its result is a graph output, which stays in float"
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        tensor = self.graph.tensor(weight)
        if tensor is None:
            return "both operands are activations" if weight is not None else "has no weight"
        if tensor.dtype != ir.DataType.FLOAT:
            return f"its weight is {tensor.dtype.name.lower()}, not float32"
        if node.op_type == "MatMul" and len(tensor.shape) != 2:
            return "its weight does not have two axes"
        if self._is_constant(node.inputs[0]):
            return "its data operand is a constant"
        if not _is_finite(tensor):
            return "its weight is not finite"
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            found = self.graph.tensor(bias)
            if found is None:
                return "its bias is computed"
            if len(found.shape) != 1 or found.size != tensor.shape[weight_axis(node)]:
                return "its bias is not one value a channel"
            if not _is_finite(found):
                return "its bias is not finite"
        if node.op_type == "Gemm":
            plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
            if any(self.graph.attribute(node, k, v) != v for k, v in plain.items()):
                return "Gemm with alpha, beta or transA"
        return None

    def _is_constant(self, value: Value | None) -> bool:
        return self.graph.is_constant(value) or (
            value is not None and value.name in self.graph.sparse
        )

    def _drop_useless_tails(self) -> None:
        """Give back pass-through ops whose codes nobody quantized reads."""
        for node in reversed(list(self.chosen)):
            rule = self.chosen[node]
            if rule.output != "same":
                continue
            if not any(use.node in self.chosen for use in self.result(node).uses()):
                del self.chosen[node]
                self.coded.discard(self.result(node))
                self.reasons[node] = "its readers are in float"

    def result(self, node: Node) -> Value:
        """The value that carries the node's codes: behind an absorbed activation function."""
        out = node.outputs[0]
        reader = self.graph.only_reader(out)
        if (
            reader is not None
            and self.graph.is_standard(reader, *self.target.absorbs)
            and reader.graph is node.graph
            and reader.inputs[0] is out
            and clip_bounds(self.graph, reader) is not None
        ):
            return reader.outputs[0]
        return out

    # -- which values ----------------------------------------------------------------------------

    def _write(self) -> Plan:
        plan = Plan()
        groups = _Groups()
        for node, rule in self.chosen.items():
            name = node.name or ""
            plan.nodes[name] = (
                self.target.weight.dtype,
                f"{self.target.name} runs {node.op_type} in integers",
            )
            for index, value in enumerate(node.inputs):
                if value is None:
                    continue
                role = rule.role(index)
                if role == "activation":
                    plan.reads.add((name, index))
                    self._place(plan, value, f"read by {node.op_type} {name}")
                elif role == "weight":
                    spec = replace(self.target.weight, axis=weight_axis(node))
                    plan.weights[name, index] = Placement(spec, f"{name}:{index}", "weight")
                elif role == "bias":
                    plan.biases[name, index] = Placement(Spec("int32"), f"{name}:{index}", "bias")
            result = self.result(node)
            if rule.output != "float":
                plan.writes.add(result.name or "")
                self._place(plan, result, f"written by {node.op_type} {name}")
            activation = result.producer()
            if activation is not None and activation is not node:
                bounds = clip_bounds(self.graph, activation)
                if bounds is not None and (rule.output != "float"):
                    plan.absorbed[activation.name or ""] = bounds
            if rule.output == "same":
                for index, value in enumerate(node.inputs):
                    if value is not None and rule.role(index) == "activation":
                        groups.join(value.name or "", result.name or "")
        for name, placement in plan.activations.items():
            plan.activations[name] = replace(placement, group=groups.find(name))
        for node, reason in self.reasons.items():
            if (node.name or "") in plan.absorbed:
                entry = (self.target.activation.dtype, "absorbed into the range of its encoding")
            else:
                entry = ("float", reason)
            plan.nodes[node.name or ""] = entry
        self._explain_floats(plan)
        return plan

    def _place(self, plan: Plan, value: Value, reason: str) -> None:
        name = value.name or ""
        if name not in plan.activations:
            plan.activations[name] = Placement(self.target.activation, name, reason)

    def _explain_floats(self, plan: Plan) -> None:
        for value in self._float_values():
            name = value.name or ""
            if name in plan.activations:
                continue
            producer = value.producer()
            if value.is_graph_output():
                plan.floats[name] = "graph output"
            elif producer is not None and producer in self.chosen:
                plan.floats[name] = "inside a fused unit, or read by float operators only"
            else:
                plan.floats[name] = "no quantized operator writes or reads it"

    def _float_values(self) -> Iterator[Value]:
        yield from (v for v in self.graph.inputs if v.dtype == ir.DataType.FLOAT)
        for node in self.graph.nodes():
            yield from (v for v in node.outputs if v.dtype == ir.DataType.FLOAT)


def _is_finite(tensor: ir.TensorProtocol) -> bool:
    array = tensor.numpy()
    # Both are NaN if any element is; that needs no array of truth values beside the weight.
    return bool(np.isfinite(array.min(initial=0.0)) and np.isfinite(array.max(initial=0.0)))


def weight_axis(node: Node) -> int:
    """Axis of the weight that runs over output channels."""
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if Graph.attribute(node, "transB", 0) else 1
    return 1 if node.op_type == "MatMul" else 0


def clip_bounds(graph: Graph, node: Node) -> tuple[float, float] | None:
    """Bounds of a Relu or Clip with constant bounds; None for anything else."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    bounds = [float("-inf"), float("inf")]
    for index in (1, 2):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            continue
        bound = graph.scalar(value)
        if bound is None:
            return None
        bounds[index - 1] = bound
    return bounds[0], bounds[1]


class _Groups:
    """Union-find over value names."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        while self.parent.get(name, name) != name:
            self.parent[name] = self.parent.get(self.parent[name], self.parent[name])
            name = self.parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        self.parent[self.find(b)] = self.find(a)
