"""Writes down what a placement decided: the plan, with a reason for every node and value."""

from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir

from qgraph.encoding import Spec
from qgraph.facts import Placement, Plan
from qgraph.graph import Node, Value
from qgraph.passes.placement.layers import clip_bounds, weight_axis
from qgraph.passes.placement.rules import Placed, Rules
from qgraph.target import OpRule

# A reason names so many neighbours, and counts the others.
_SHOWN = 3


def write_plan(rules: Rules, placed: Placed, precision: str) -> Plan:
    """Turn a placement into a plan.

    Args:
        rules: Rules and graph.
        placed: What was decided.
        precision: Decides what activations are quantized to.
    """
    return _Writer(rules, placed, precision).write()


class _Writer:
    def __init__(self, rules: Rules, placed: Placed, precision: str) -> None:
        self.rules, self.placed, self.graph = rules, placed, rules.graph
        self.target = rules.target
        self.activation = self.target.activation
        self.precision = self.target.weight.dtype if precision == "int8" else precision
        self.plan, self.groups = Plan(), _Groups()
        # By value name, why it is quantized.
        self.whys: dict[str, list[str]] = {}

    def write(self) -> Plan:
        plan = self.plan
        for node, rule in self.placed.chosen.items():
            self._node(node, rule)
        members: dict[str, list[str]] = {}
        for name in plan.activations:
            members.setdefault(self.groups.find(name), []).append(name)
        for group, names in members.items():
            for name in names:
                reason = self._reason(name, [each for each in names if each != name])
                plan.activations[name] = replace(plan.activations[name], group=group, reason=reason)
        for node, reason in self.placed.fused.items():
            plan.nodes[node.name or ""] = ("fused", reason)
        for node, reason in self.placed.reasons.items():
            if (node.name or "") in plan.absorbed:
                entry = (self.activation.dtype, "absorbed into the range of its encoding")
            else:
                entry = ("float", reason)
            plan.nodes[node.name or ""] = entry
        self._explain_floats()
        return plan

    def _node(self, node: Node, rule: OpRule) -> None:
        plan, name = self.plan, node.name or ""
        why = self.placed.why.get(node) or (
            f"{self.target.name} runs {node.op_type} in {self.target.numbers}"
        )
        plan.nodes[name] = (self.precision, why)
        for index, value in enumerate(node.inputs):
            if value is None or (node, index) in self.placed.skipped:
                continue
            role = rule.role(index)
            if role == "activation":
                plan.reads.add((name, index))
                self._place(value, f"read by {node.op_type} {name}")
            elif role == "weight":
                spec = replace(self.target.weight, axis=weight_axis(node))
                plan.weights[name, index] = Placement(spec, f"{name}:{index}", "weight")
            elif role == "bias":
                plan.biases[name, index] = Placement(Spec("int32"), f"{name}:{index}", "bias")
        result = self.rules.result(node)
        if node in self.placed.writing:
            plan.writes.add(result.name or "")
            self._place(result, f"written by {node.op_type} {name}")
            activation = result.producer()
            if activation is not None and activation is not node:
                bounds = clip_bounds(self.graph, activation)
                if bounds is not None:
                    plan.absorbed[activation.name or ""] = bounds
        if rule.output == "same":
            for _, value in self.rules.activations(node):
                self.groups.join(value.name or "", result.name or "")

    def _place(self, value: Value, reason: str) -> None:
        name = value.name or ""
        self.whys.setdefault(name, []).append(reason)
        if name in self.plan.activations:
            return
        producer = value.producer()
        known = self.target.ranges.get(producer.op_type) if producer is not None else None
        self.plan.activations[name] = Placement(self.activation, name, reason, known)

    def _reason(self, name: str, partners: list[str]) -> str:
        """Who reads and writes the codes of a value, and what else decides its scale."""
        parts = [_listed(list(dict.fromkeys(self.whys[name])))]
        if partners:
            parts.append(f"one scale with {_listed(partners)}")
        known = self.plan.activations[name].known
        if known is not None:
            parts.append(f"its range is {known[0]:g} to {known[1]:g} on any data")
        return "; ".join(parts)

    def _explain_floats(self) -> None:
        units = self.target.placement == "units"
        for value in self._float_values():
            name, producer = value.name or "", value.producer()
            if name in self.plan.activations:
                continue
            if value.is_graph_output():
                reason = "graph output"
            elif value in self.placed.floats:
                reason = self.placed.floats[value]
            elif units:
                reason = "no quantized operator reads it"
            elif producer is not None and producer in self.placed.chosen:
                reason = "inside a fused unit, or read by float operators only"
            else:
                reason = "no quantized operator writes or reads it"
            self.plan.floats[name] = reason

    def _float_values(self) -> Iterator[Value]:
        yield from (v for v in self.graph.inputs if v.dtype == ir.DataType.FLOAT)
        for node in self.graph.nodes():
            yield from (v for v in node.outputs if v.dtype == ir.DataType.FLOAT)


def _listed(texts: list[str]) -> str:
    """Some of the texts, the rest counted."""
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


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
