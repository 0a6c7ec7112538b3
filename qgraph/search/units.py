"""What a search decides about: nodes that run in integers, and the values between them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qgraph.encoding import INTEGERS
from qgraph.facts import Plan
from qgraph.graph import Graph, Node, Value
from qgraph.target import Target

# A quantized bias has this many bytes, as a float one has.
_BIAS_BYTES = 4


@dataclass(eq=False)
class Unit:
    """A node that runs in integers or in float, with the activation function in its kernel.

    Attributes:
        index: Its place among all units.
        node: The node.
        activation: The Relu or Clip that its codes absorb, or None.
        reads: Values that it reads as codes, by index of the input.
        writes: The value that it hands out as codes; None where its result stays in float.
        float_bytes: Bytes of its weights in float.
        code_bytes: Bytes of its weights, scales and biases in integers.
    """

    index: int
    node: Node
    activation: Node | None = None
    reads: dict[int, Value] = field(default_factory=dict)
    writes: Value | None = None
    float_bytes: int = 0
    code_bytes: int = 0

    @property
    def name(self) -> str:
        """Name of the node."""
        return self.node.name or ""

    @property
    def nodes(self) -> list[Node]:
        """The node and its activation function."""
        return [self.node] if self.activation is None else [self.node, self.activation]

    @property
    def result(self) -> Value:
        """What leaves the unit."""
        return self.nodes[-1].outputs[0]


@dataclass(frozen=True, eq=False)
class Link:
    """A value between units.

    Attributes:
        value: The value.
        writer: Index of the unit that hands it out as codes, or None.
        readers: Indices of the units that read it as codes; None for everything else.
    """

    value: Value
    writer: int | None
    readers: tuple[int | None, ...]


def find_units(graph: Graph, target: Target) -> list[Unit]:
    """Return the units of a planned graph, in graph order.

    Operators that only hand codes on, such as Reshape and MaxPool, follow their neighbours and are
    no units.
    """
    plan: Plan = graph.facts.get("plan")
    found: list[Unit] = []
    for node in graph.nodes():
        name = node.name or ""
        indices = [i for i in range(len(node.inputs)) if (name, i) in plan.reads]
        if not indices or _hands_on(node, target):
            continue
        unit = Unit(len(found), node)
        unit.reads = {i: value for i in indices if (value := node.inputs[i]) is not None}
        unit.activation = _absorbed(graph, node, plan)
        if (unit.result.name or "") in plan.writes:
            unit.writes = unit.result
        _count_bytes(graph, unit, plan)
        found.append(unit)
    return found


def links(graph: Graph, units: Sequence[Unit], target: Target) -> list[Link]:
    """Return the values that units read or write as codes, with who stands at their ends."""
    readers: dict[Value, dict[int | None, None]] = {}
    writers = {unit.writes: unit.index for unit in units if unit.writes is not None}
    of_unit = {(unit.node, i): unit.index for unit in units for i in unit.reads}
    for unit in units:
        for value in unit.reads.values():
            for root in _roots(value, target):
                readers.setdefault(root, {})
        if unit.writes is not None:
            readers.setdefault(unit.writes, {})
    for value, ends in readers.items():
        ends.update(dict.fromkeys(_readers(value, of_unit, target)))
    return [Link(value, writers.get(value), tuple(ends)) for value, ends in readers.items()]


def _hands_on(node: Node, target: Target) -> bool:
    rule = target.rule(node.op_type)
    return rule is not None and rule.output == "same"


def _absorbed(graph: Graph, node: Node, plan: Plan) -> Node | None:
    reader = graph.only_reader(node.outputs[0])
    return reader if reader is not None and (reader.name or "") in plan.absorbed else None


def _roots(value: Value, target: Target) -> Iterator[Value]:
    """Yield where the codes of a value come from, behind what only hands them on."""
    producer = value.producer()
    if producer is None or not _hands_on(producer, target):
        yield value
        return
    rule = target.rule(producer.op_type)
    for index, each in enumerate(producer.inputs):
        if each is not None and rule is not None and rule.role(index) == "activation":
            yield from _roots(each, target)


def _readers(
    value: Value, of_unit: dict[tuple[Node, int], int], target: Target
) -> Iterator[int | None]:
    if value.is_graph_output():
        yield None
    for use in value.uses():
        unit = of_unit.get((use.node, use.idx))
        if unit is not None:
            yield unit
        elif _hands_on(use.node, target):
            yield from _readers(use.node.outputs[0], of_unit, target)
        else:
            yield None


def _count_bytes(graph: Graph, unit: Unit, plan: Plan) -> None:
    for index, value in enumerate(unit.node.inputs):
        tensor = graph.tensor(value)
        if tensor is None:
            continue
        if (unit.name, index) in plan.weights:
            spec = plan.weights[unit.name, index].spec
            codes = INTEGERS[spec.dtype][2].itemsize
            channels = tensor.shape.numpy()[spec.axis] if spec.axis is not None else 1
            unit.float_bytes += tensor.nbytes
            # A float scale and a zero point for each channel.
            unit.code_bytes += tensor.size * codes + channels * (4 + codes)
        elif (unit.name, index) in plan.biases:
            unit.float_bytes += tensor.nbytes
            unit.code_bytes += 2 * _BIAS_BYTES * tensor.size
