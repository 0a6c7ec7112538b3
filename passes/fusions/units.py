"""Marks what an engine runs as one kernel; the graph stays as it is."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph.context import Context
from qgraph.facts import Unit
from qgraph.graph import Graph, Node, Value
from qgraph.pipeline import Pass, PassReport

_KINDS = {"Conv": "conv", "ConvTranspose": "conv_transpose"}
_ANCHORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ACTIVATIONS = (
    "Clip",
    "Elu",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "PRelu",
    "Relu",
    "Sigmoid",
    "Swish",
    "Tanh",
)
# A weight may stand behind these few nodes, until constant folding takes them away.
_VIEWS = ("Cast", "Identity", "Reshape", "Transpose")
_MAX_VIEWS = 16


@dataclass(frozen=True)
class MarkUnits(Pass):
    """Mark convolutions and matrix products with the bias, shortcut and activation behind them.

    Before and after, the same nodes:
        c = Conv(x, weight, b)
        s = Add(c, shortcut)
        y = Relu(s)

    Fact `units`:
        One `qgraph.facts.Unit` an anchor (Conv, ConvTranspose, Gemm, MatMul), in graph order.

    When:
        The order is anchor, bias, residual, activation; all but the anchor may be missing. A bias
        is an Add of a constant along the last axis to a MatMul; a residual an Add of two
        activations whose known shapes are equal; an activation Relu, Clip with constant bounds,
        LeakyRelu, PRelu with a constant slope, HardSwish, HardSigmoid, Sigmoid, Tanh, Gelu, Mish,
        Swish or Elu. An Add of two anchors' results belongs to the one that runs later, since
        the other result must wait for it.

    Leaves alone:
        Results that are read twice or are graph outputs end a unit. An Add behind an activation
        is no part of it; nor is the mask Add before a Softmax. Subgraphs have no units.

    Numerics:
        Exact: nothing is rewritten.

    Source:
        NVIDIA TensorRT documentation, "Layer fusion" and "Q/DQ fusion"; oneDNN developer guide,
        "Primitive attributes: post-ops".
    """

    name: ClassVar[str] = "units"
    gives: ClassVar[frozenset[str]] = frozenset({"units"})

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Write `facts.units`."""
        starts = [_start(graph, node) for node in graph.nodes(*_ANCHORS)]
        # Later units overwrite earlier ones, so an Add of two results goes to the later.
        owners = {add: unit for unit in starts if (add := _residual(graph, unit)) is not None}
        for add, unit in owners.items():
            unit.residual = add
        report = PassReport()
        for unit in starts:
            unit.activation = _activation(graph, unit)
            where = unit.anchor.name or unit.output.name or unit.anchor.op_type
            tail = [node.op_type for node in unit.nodes]
            report.details.append(f"{where}: {unit.kind}, {' + '.join(tail)}")
        graph.facts.units = starts
        return report


def _start(graph: Graph, anchor: Node) -> Unit:
    kind = _KINDS.get(anchor.op_type)
    if kind is None:
        kind = "linear" if _is_weight(graph, anchor.inputs[1]) else "matmul"
    unit = Unit(kind, anchor)
    if anchor.op_type == "MatMul":
        unit.bias = _bias(graph, anchor)
    return unit


def _is_weight(graph: Graph, value: Value | None) -> bool:
    for _ in range(_MAX_VIEWS):
        if value is None or graph.is_constant(value):
            return value is not None
        node = value.producer()
        if node is None or not graph.is_standard(node, *_VIEWS):
            return False
        value = node.inputs[0]
    return False


def _next(graph: Graph, value: Value) -> Node | None:
    """Return the standard node of the main graph that alone reads `value`."""
    node = graph.only_reader(value)
    if node is None or node.graph is not graph.main or not graph.is_standard(node):
        return None
    return node


def _bias(graph: Graph, matmul: Node) -> Node | None:
    result = matmul.outputs[0]
    node = _next(graph, result)
    if node is None or node.op_type != "Add":
        return None
    other = node.inputs[1] if node.inputs[0] is result else node.inputs[0]
    tensor = graph.tensor(other)
    if tensor is None:
        return None
    lengths = tuple(tensor.shape.numpy())
    rank = graph.rank(result)
    fits = len(lengths) <= 1 or (rank is not None and len(lengths) <= rank)
    return node if fits and all(d == 1 for d in lengths[:-1]) else None


def _residual(graph: Graph, unit: Unit) -> Node | None:
    result = unit.output
    node = _next(graph, result)
    if node is None or node.op_type != "Add" or any(map(graph.is_constant, node.inputs)):
        return None
    shapes = [graph.shape(value) for value in node.inputs]
    if not _may_be_equal(*shapes) or _enters_softmax(graph, node):
        return None
    return node


def _may_be_equal(
    one: tuple[int | str | None, ...] | None, other: tuple[int | str | None, ...] | None
) -> bool:
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(
        a == b or (not isinstance(a, int) and b != 1) or (not isinstance(b, int) and a != 1)
        for a, b in zip(one, other, strict=True)
    )


def _enters_softmax(graph: Graph, add: Node) -> bool:
    value = add.outputs[0]
    for _ in range(_MAX_VIEWS):
        readers = graph.readers(value)
        if any(graph.is_standard(node, "Softmax") for node in readers):
            return True
        views = [node for node in readers if graph.is_standard(node, *_VIEWS)]
        if not views:
            return False
        value = views[0].outputs[0]
    return False


def _activation(graph: Graph, unit: Unit) -> Node | None:
    result = unit.output
    node = _next(graph, result)
    if node is None or node.op_type not in _ACTIVATIONS or node.inputs[0] is not result:
        return None
    if any(each is not None and not graph.is_constant(each) for each in node.inputs[1:]):
        return None
    return node
