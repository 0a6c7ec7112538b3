"""Some units with activations in 16 bits among others with 8: in which codes values are, and are read."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from qgraph.encoding import Encoding
from qgraph.facts import Plan
from qgraph.graph import Graph, Node, Value
from qgraph.search.units import hands_on
from qgraph.target import Target

Encodings = Mapping[str, Encoding]


@dataclass(eq=False)
class Widened:
    """In which codes values are, and which inputs read other ones.

    Attributes:
        encodings: By value name.
        recoded: By (node name, input index), the codes that are read where the value's own are others.
    """

    encodings: dict[str, Encoding]
    recoded: dict[tuple[str, int], Encoding] = field(default_factory=dict)


def widen(
    graph: Graph, target: Target, narrow: Encodings, wide: Encodings, names: Collection[str]
) -> Widened:
    """Give units 16 bits: what they write has them, and what they read is turned into them.

    What floats write has them where any unit that reads it wants them: from 16 bits to 8 nothing is lost
    that 8 bits had. What operators write that only hand codes on has them where an input has.

    Args:
        graph: The planned graph, before Q/DQ.
        target: What it was planned for.
        narrow: Encodings in 8 bits, by value name.
        wide: The same in 16 bits.
        names: Names of the units that have 16.
    """
    return _Widener(graph, target, narrow, wide, names).widened()


class _Widener:
    def __init__(
        self,
        graph: Graph,
        target: Target,
        narrow: Encodings,
        wide: Encodings,
        names: Collection[str],
    ) -> None:
        self.graph, self.target = graph, target
        self.narrow, self.wide, self.names = narrow, wide, names
        self.plan: Plan = graph.facts.get("plan")
        self.found = Widened(dict(narrow))
        self.large: set[Value] = set()
        self.wanted: set[Value] = set()

    def widened(self) -> Widened:
        self._find_wanted()
        for value in self.graph.main.inputs:
            self._value(value)
        for node in self.graph.nodes():
            for value in node.outputs:
                self._value(value)
        for node in self.graph.nodes():
            for index, read in enumerate(node.inputs):
                if read is not None and (node.name or "", index) in self.plan.reads:
                    self._read(node, index, read)
        return self.found

    def _value(self, value: Value) -> None:
        name = value.name or ""
        if name in self.plan.activations and name in self.wide and self._is_large(value):
            self.large.add(value)
            self.found.encodings[name] = self.wide[name]

    def _is_large(self, value: Value) -> bool:
        producer = value.producer()
        if producer is not None and self._hands_on(producer):
            return any(read in self.large for read in producer.inputs)
        if (value.name or "") in self.plan.writes and producer is not None:
            return self._unit(producer) in self.names
        return value in self.wanted

    def _unit(self, producer: Node) -> str:
        """Name of the unit that a value comes from: of an activation function, what is in front of it."""
        if (producer.name or "") in self.plan.absorbed and producer.inputs[0] is not None:
            inner = producer.inputs[0].producer()
            return (inner.name or "") if inner is not None else ""
        return producer.name or ""

    def _find_wanted(self) -> None:
        """Find the values that a unit reads that has 16 bits, also behind what hands codes on."""
        for node in reversed(list(self.graph.nodes())):
            results = any(out in self.wanted for out in node.outputs)
            wants = results if self._hands_on(node) else node.name in self.names
            for index, value in enumerate(node.inputs):
                if wants and value is not None and (node.name or "", index) in self.plan.reads:
                    self.wanted.add(value)

    def _read(self, node: Node, index: int, value: Value) -> None:
        result = node.outputs[0]
        wants = result in self.large if self._hands_on(node) else node.name in self.names
        name = value.name or ""
        if wants == (value in self.large) or (wants and name not in self.wide):
            return
        self.found.recoded[node.name or "", index] = (self.wide if wants else self.narrow)[name]

    def _hands_on(self, node: Node) -> bool:
        return hands_on(node, self.target)
