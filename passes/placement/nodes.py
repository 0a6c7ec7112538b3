"""Placement `nodes`: every quantized operator between DequantizeLinear and QuantizeLinear."""

from collections.abc import Collection
from dataclasses import replace

from qgraph.graph import Node, Value
from qgraph.passes.placement.rules import Placed, Rules


def place_nodes(rules: Rules) -> Placed:
    """Choose what runs in integers where an engine wants Q/DQ on both sides of an operator."""
    return _Placer(rules).place()


class _Placer:
    def __init__(self, rules: Rules) -> None:
        self.rules, self.graph, self.target = rules, rules.graph, rules.target
        self.placed = Placed()
        # Values whose producer hands out codes.
        self.coded: set[Value] = set()
        # Nodes that take codes whatever else is decided: those that start, and what leads to them.
        self.eaters: set[Node] = set()

    def place(self) -> Placed:
        for node in reversed(self.graph.main):
            if self._eats(node):
                self.eaters.add(node)
        for node in self.graph.nodes():
            self._choose(node)
        self._drop_useless_tails()
        self.placed.writing = {n for n, r in self.placed.chosen.items() if r.output != "float"}
        return self.placed

    def _choose(self, node: Node) -> None:
        reason = self._refusal(node, self.coded)
        if reason is not None:
            self.placed.reasons[node] = reason
            return
        rule = self.rules.rule(node)
        assert rule is not None
        if rule.output == "float" and self._only_eaten(self.rules.result(node)):
            rule = replace(rule, output="quantized")
        self.placed.chosen[node] = rule
        if rule.output != "float":
            self.coded.add(self.rules.result(node))

    def _eats(self, node: Node) -> bool:
        """Whether `node` runs in integers on its own account, or hands codes on to such nodes."""
        rule = self.rules.rule(node)
        if rule is None:
            return False
        if rule.starts:
            return self._refusal(node, self.coded) is None
        # With several activations (Concat) it depends on the others too.
        several = len(self.rules.activations(node)) != 1
        if rule.output != "same" or several or not self._only_eaten(self.rules.result(node)):
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
        rule = self.rules.rule(node)
        return node in self.eaters and rule is not None and rule.role(index) == "activation"

    def _refusal(self, node: Node, coded: Collection[Value]) -> str | None:
        """Say why `node` stays in float, given the values that come quantized."""
        reason = self.rules.refusal(node)
        rule = self.rules.rule(node)
        if reason is not None or rule is None:
            return reason
        activations = self.rules.activations(node)
        if not rule.starts:
            arriving = [value for _, value in activations if value in coded]
            if not arriving:
                return "no operand arrives quantized"
            if rule.output == "same" and len(arriving) != len(activations):
                return "not every operand arrives quantized"
        if self.rules.result(node).is_graph_output() and rule.output != "float":
            return "its result is a graph output, which stays in float"
        return None

    def _drop_useless_tails(self) -> None:
        """Give back pass-through ops whose codes nobody quantized reads."""
        chosen = self.placed.chosen
        for node in reversed(list(chosen)):
            if chosen[node].output != "same":
                continue
            if not any(use.node in chosen for use in self.rules.result(node).uses()):
                del chosen[node]
                self.coded.discard(self.rules.result(node))
                self.placed.reasons[node] = "its readers are in float"
