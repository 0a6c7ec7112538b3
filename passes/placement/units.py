"""Placement `units`: only what enters a fused unit is quantized; results are not."""

from collections.abc import Iterator

from qgraph.graph import Node, Value
from qgraph.passes.placement.residual import Residuals
from qgraph.passes.placement.rules import Placed, Rules

# Activation functions that Mul may join with their own input, as x * Sigmoid(x).
_GATES = ("HardSigmoid", "Sigmoid", "Softplus", "Tanh")
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def place_units(rules: Rules) -> Placed:
    """Choose what is quantized where an engine fuses Q/DQ with the kernel that reads it."""
    return _Placer(rules).place()


class _Placer:
    def __init__(self, rules: Rules) -> None:
        self.rules, self.graph, self.target = rules, rules.graph, rules.target
        self.placed = Placed()
        # By value, the anchor whose kernel computes it; residual Adds end a kernel here.
        self.kernels: dict[Value, Node] = {}
        # (node, input index) of everything that reads codes, or hands them to what does.
        self.eating: set[tuple[Node, int]] = set()

    def place(self) -> Placed:
        possible = []
        for node in self.graph.nodes():
            reason = self.rules.refusal(node)
            if reason is None:
                possible.append(node)
            else:
                self.placed.reasons[node] = reason
        self._layers(possible)
        self._residuals(possible)
        self._pass_through(possible)
        self._fuse()
        # Placed again in graph order, which the names of what is inserted follow.
        order = [node for node in self.graph.nodes() if node in self.placed.chosen]
        self.placed.chosen = {node: self.placed.chosen[node] for node in order}
        return self.placed

    def _choose(self, node: Node, why: str = "") -> None:
        rule = self.rules.rule(node)
        assert rule is not None
        self.placed.chosen[node] = rule
        if why:
            self.placed.why[node] = why

    # -- convolutions and matrix products --------------------------------------------------------

    def _layers(self, possible: list[Node]) -> None:
        for node in possible:
            rule = self.rules.rule(node)
            if rule is None or not rule.starts:
                continue
            self._choose(node)
            self.eating |= {(node, index) for index, _ in self.rules.activations(node)}
            for value in self._kernel(node.outputs[0]):
                self.kernels[value] = node

    def _kernel(self, value: Value) -> Iterator[Value]:
        """Yield `value` and what elementwise operators make of it while nobody else reads it."""
        seen = {value}
        following: Value | None = value
        while following is not None:
            yield following
            following = self._next(following)
            if following in seen:
                return
            if following is not None:
                seen.add(following)

    def _next(self, value: Value) -> Value | None:
        """What the kernel that computes `value` can compute of it in the same go, if anything."""
        readers = list(dict.fromkeys(self.graph.readers(value)))
        if value.is_graph_output() or any(node.graph is not self.graph.main for node in readers):
            return None
        if len(readers) == 2:
            return self._gated(value, readers)
        if len(readers) != 1 or not self.graph.is_standard(readers[0], *self.target.fused):
            return None
        others = [each for each in readers[0].inputs if each is not None and each is not value]
        alone = all(self.rules.is_constant(each) for each in others)
        return readers[0].outputs[0] if alone and len(readers[0].outputs) == 1 else None

    def _gated(self, value: Value, readers: list[Node]) -> Value | None:
        """The result of value * gate(value)."""
        for gate, mul in (readers, readers[::-1]):
            if (
                self.graph.is_standard(gate, *_GATES)
                and self.graph.is_standard(mul, "Mul")
                and self.graph.only_reader(gate.outputs[0]) is mul
                and set(mul.inputs) == {value, gate.outputs[0]}
            ):
                return mul.outputs[0]
        return None

    # -- residual Adds ---------------------------------------------------------------------------

    def _residuals(self, possible: list[Node]) -> None:
        convolutions = {v: n for v, n in self.kernels.items() if n.op_type in _CONVOLUTIONS}
        residuals = Residuals(self.graph, convolutions)
        for add in possible:
            rule = self.rules.rule(add)
            if rule is None or rule.starts or rule.output != "float":
                continue
            inner = residuals.inner(add)
            if isinstance(inner, str):
                self.placed.reasons[add] = inner
                continue
            self.eating |= {(add, index) for index in (0, 1) if index != inner}
            if inner is None:
                self._choose(add, "both operands are quantized: one is computed from the other")
                continue
            value = add.inputs[inner]
            assert value is not None
            kernel = convolutions[value]
            self._choose(add, f"the kernel of {kernel.name} adds the quantized shortcut")
            self.placed.skipped.add((add, inner))
            self.placed.floats[value] = f"added to the shortcut in the kernel of {kernel.name}"
            for result in self._kernel(add.outputs[0]):
                self.kernels.setdefault(result, kernel)

    # -- operators that codes pass through -------------------------------------------------------

    def _pass_through(self, possible: list[Node]) -> None:
        """Choose layout operators whose readers take codes, from the graph's end."""
        for node in reversed(possible):
            rule = self.rules.rule(node)
            if rule is None or rule.output != "same":
                continue
            uses = list(node.outputs[0].uses())
            if not any((use.node, use.idx) in self.eating for use in uses):
                self.placed.reasons[node] = "its readers are in float"
                continue
            operands = self.rules.activations(node)
            self.eating |= {(node, index) for index, _ in operands}
            if len(operands) > 1:
                self._choose(node, "operands and result share one scale")
            else:
                # The builder moves the reader's QuantizeLinear in front of it.
                self._choose(node, "hands on the codes that its reader takes")
                self.placed.skipped.add((node, operands[0][0]))

    # -- explanations ----------------------------------------------------------------------------

    def _fuse(self) -> None:
        """Say of nodes and values inside a kernel that they are, and drop other reasons."""
        for value, kernel in self.kernels.items():
            node = value.producer()
            if node is not None and node not in self.placed.chosen:
                self._mark(node, kernel)
                for gate in (each.producer() for each in node.inputs if each is not None):
                    if gate is not None and self.graph.is_standard(gate, *_GATES):
                        self._mark(gate, kernel)
                        self._inside(gate.outputs[0], kernel)
            if self._next(value) in self.kernels:
                self._inside(value, kernel)

    def _mark(self, node: Node, kernel: Node) -> None:
        if node not in self.rules.heads:
            self.placed.fused[node] = f"computed in float inside the kernel of {kernel.name}"
            self.placed.reasons.pop(node, None)

    def _inside(self, value: Value, kernel: Node) -> None:
        self.placed.floats.setdefault(value, f"inside the kernel of {kernel.name}")
