"""What a search decides about: nodes that may run in other precisions, and the values between them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from qgraph.encoding import INTEGERS
from qgraph.facts import Plan
from qgraph.graph import Graph, Node, Value
from qgraph.search.choice import End
from qgraph.subgraph import read_by
from qgraph.target import Target

# A quantized bias has this many bytes, as a float one has.
_BIAS_BYTES = 4
# What is decided about on its own even where it can't run in integers.
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "GRU", "LSTM", "RNN")


@dataclass(eq=False)
class Unit:
    """A node that is decided about, with the activation function in its kernel.

    Attributes:
        index: Its place among all units.
        node: The node.
        activation: The Relu or Clip that its codes absorb, or None.
        reads: Values that it reads as codes, by index of the input; none where it can't run in
            integers.
        writes: The value that it hands out as codes; None where its result stays in float.
        tail: What follows it in its segment.
        float_bytes: Bytes of its weights in float.
        code_bytes: Bytes of its weights, scales and biases in integers.
    """

    index: int
    node: Node
    activation: Node | None = None
    reads: dict[int, Value] = field(default_factory=dict)
    writes: Value | None = None
    tail: list[Node] = field(default_factory=list)
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
        writer: Where it is computed.
        readers: Where it is read.
    """

    value: Value
    writer: End
    readers: tuple[End, ...]


def find_units(graph: Graph, target: Target, *, floats: bool = False) -> list[Unit]:
    """Return the units of a planned graph, in graph order.

    Operators that only hand codes on, such as Reshape and MaxPool, follow their neighbours and are
    no units.

    Args:
        graph: The float graph with its plan.
        target: What it was planned for.
        floats: Whether products that can't run in integers are units too, and the first node, so
            that every node is in a segment of a unit.
    """
    plan: Plan = graph.facts.get("plan")
    found: list[Unit] = []
    absorbed: set[Node | None] = set()
    for node in graph.nodes():
        name = node.name or ""
        indices = [i for i in range(len(node.inputs)) if (name, i) in plan.reads]
        if not indices or hands_on(node, target):
            first = not found and node.op_type != "Constant"
            if floats and (first or node.op_type in PRODUCTS) and node not in absorbed:
                found.append(Unit(len(found), node))
                _count_floats(graph, found[-1])
            continue
        unit = Unit(len(found), node)
        unit.reads = {i: value for i in indices if (value := node.inputs[i]) is not None}
        unit.activation = _absorbed(graph, node, plan)
        absorbed.add(unit.activation)
        if (unit.result.name or "") in plan.writes:
            unit.writes = unit.result
        _count_bytes(graph, unit, plan)
        found.append(unit)
    for owner, nodes in cut(graph, found):
        if owner is not None:
            owner.tail = [node for node in nodes if node not in owner.nodes]
    return found


def cut(graph: Graph, units: Sequence[Unit]) -> list[tuple[Unit | None, list[Node]]]:
    """Return the nodes of each segment in an order in which they can run.

    A segment begins with a unit, whose activation function stands right behind its node, and ends in
    front of the next one. The first has none.
    """
    starts = {unit.node: unit for unit in units}
    moved = {unit.activation for unit in units if unit.activation is not None}
    parts: list[tuple[Unit | None, list[Node]]] = [(None, [])]
    for node in graph.nodes():
        unit = starts.get(node)
        if unit is not None:
            parts.append((unit, unit.nodes))
        elif node not in moved:
            parts[-1][1].append(node)
    return parts


def links(
    graph: Graph, units: Sequence[Unit], target: Target, *, floats: bool = False
) -> list[Link]:
    """Return the values between units, with who stands at their ends.

    Args:
        graph: The float graph.
        units: Its units.
        target: What it was planned for.
        floats: Whether floats that pass from one segment to another count, and not only what is read
            or written as codes.
    """
    ends = _Ends(units, target)
    values: dict[Value, None] = {}
    for unit in units:
        for value in unit.reads.values():
            values.update(dict.fromkeys(_roots(value, target)))
        if unit.writes is not None:
            values[unit.writes] = None
    if floats:
        made = {out: None for node in graph.nodes() for out in node.outputs}
        for value in (*graph.inputs, *made):
            producer = value.producer()
            if value.dtype != ir.DataType.FLOAT or (producer and hands_on(producer, target)):
                continue
            if {end.unit for end in ends.readers(value)} - {ends.writer(value).unit}:
                values[value] = None
    return [Link(value, ends.writer(value), tuple(ends.readers(value))) for value in values]


class _Ends:
    """Says which part of which unit writes or reads a value."""

    def __init__(self, units: Sequence[Unit], target: Target) -> None:
        self.target = target
        self.codes = {(unit.node, i): unit.index for unit in units for i in unit.reads}
        self.written = {unit.writes: unit.index for unit in units if unit.writes is not None}
        self.segment = {node: unit.index for unit in units for node in (*unit.nodes, *unit.tail)}

    def writer(self, value: Value) -> End:
        if value in self.written:
            return End(self.written[value], "writes")
        producer = value.producer()
        return End(None if producer is None else self.segment.get(producer))

    def readers(self, value: Value) -> dict[End, None]:
        """Who reads a value, also behind what hands codes on as they are."""
        found: dict[End, None] = {}
        if value.is_graph_output():
            found[End()] = None
        for use in value.uses():
            unit = self.codes.get((use.node, use.idx))
            if unit is not None:
                found[End(unit, "reads")] = None
            elif hands_on(use.node, self.target):
                found.update(self.readers(use.node.outputs[0]))
            else:
                found[End(self.segment.get(use.node))] = None
        return found


def hands_on(node: Node, target: Target) -> bool:
    """Whether an operator only hands codes on, as they are."""
    rule = target.rule(node.op_type)
    return rule is not None and rule.output == "same"


def _absorbed(graph: Graph, node: Node, plan: Plan) -> Node | None:
    reader = graph.only_reader(node.outputs[0])
    return reader if reader is not None and (reader.name or "") in plan.absorbed else None


def _roots(value: Value, target: Target) -> Iterator[Value]:
    """Yield where the codes of a value come from, behind what only hands them on."""
    producer = value.producer()
    if producer is None or not hands_on(producer, target):
        yield value
        return
    rule = target.rule(producer.op_type)
    for index, each in enumerate(producer.inputs):
        if each is not None and rule is not None and rule.role(index) == "activation":
            yield from _roots(each, target)


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


def _count_floats(graph: Graph, unit: Unit) -> None:
    """Count the constants of a unit that can't run in integers."""
    tensors = [graph.tensor(value) for value in read_by(unit.node)]
    unit.float_bytes = sum(
        tensor.nbytes
        for tensor in tensors
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT
    )
    unit.code_bytes = unit.float_bytes
