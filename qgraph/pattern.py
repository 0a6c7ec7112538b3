"""Patterns over a graph: written as nested calls, matched backwards from the last node.

    x = var("x")
    conv = op.Conv(x, const("weight"), maybe("bias"), bind="conv")
    pattern = op.BatchNormalization(
        conv, const("scale"), const("shift"), const("mean"), const("variance"), bind="bn"
    )

The matcher, not the author, sees to it that
- values inside a match are read by the match alone and are no graph outputs,
- both operand orders of commutative operators are tried,
- second outputs of a matched node are unused,
- nodes of other domains or of other (sub)graphs never match.
"""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph import ONNX_DOMAINS, Graph, Node, Value

# Half the distance between neighbours, relative: what rounding to the type may change.
_ROUNDING = {ir.DataType.FLOAT16: 2.0**-11, ir.DataType.BFLOAT16: 2.0**-8}
COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min", "And", "Or", "Xor", "Equal", "Sum"})


@dataclass(frozen=True)
class Pattern:
    """Base of everything that can stand in a pattern."""


@dataclass(frozen=True)
class Var(Pattern):
    """Any value; the same name twice means the same value twice.

    Attributes:
        name: Name in the match.
        constant: True to match only constants, False only non-constants, None both.
        scalar: If set, a constant of one element with about this value.
        optional: Whether an omitted input matches too.
    """

    name: str
    constant: bool | None = None
    scalar: float | None = None
    optional: bool = False


@dataclass(frozen=True)
class Op(Pattern):
    """A node by operator, with patterns for its inputs.

    Attributes:
        types: Operators that match.
        inputs: One pattern an input; inputs beyond these must be omitted, unless `open`.
        bind: Name of the node in the match.
        domain: Operator domain; the default is the ONNX standard.
        open: Whether the node may have further inputs.
    """

    types: tuple[str, ...]
    inputs: tuple[Pattern, ...]
    bind: str = ""
    domain: str = ""
    open: bool = False

    @cached_property
    def makers(self) -> tuple[frozenset[str] | None, ...]:
        """For each input, operators that may have made it ("" for none); None for anything."""
        return tuple(_makers(each) for each in self.inputs)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Input indices, constants first: they are quickly compared, subgraphs are not."""
        cheap = [isinstance(each, Var) and each.constant is True for each in self.inputs]
        return tuple(sorted(range(len(self.inputs)), key=lambda i: not cheap[i]))


@dataclass(frozen=True)
class OneOf(Pattern):
    """The first alternative that matches."""

    choices: tuple[Pattern, ...]


class _Ops:
    def __getattr__(self, op_type: str) -> "_OpMaker":
        return _OpMaker((op_type,))

    def any_of(self, *op_types: str) -> "_OpMaker":
        """Match any one of several operators."""
        return _OpMaker(op_types)


@dataclass(frozen=True)
class _OpMaker:
    types: tuple[str, ...]

    def __call__(
        self, *inputs: Pattern, bind: str = "", domain: str = "", open: bool = False
    ) -> Op:
        return Op(self.types, inputs, bind, domain, open)


op = _Ops()


def var(name: str) -> Var:
    """Match any value."""
    return Var(name)


def const(name: str) -> Var:
    """Match any constant."""
    return Var(name, constant=True)


def activation(name: str) -> Var:
    """Match any value that is no constant."""
    return Var(name, constant=False)


def scalar(value: float, name: str = "") -> Var:
    """Match a one-element constant close to `value`.

    Close is a relative 1e-4, or the constant's own rounding: 4.9e-4 in float16, 3.9e-3 in
    bfloat16. Exporters write constants like sqrt(2) with few digits.
    """
    return Var(name, constant=True, scalar=value)


def maybe(name: str) -> Var:
    """Match any value or an omitted input; the match then lacks `name`."""
    return Var(name, optional=True)


def one_of(*choices: Pattern) -> OneOf:
    """Match the first alternative that fits."""
    return OneOf(choices)


@dataclass(frozen=True)
class Match:
    """What a pattern matched.

    Attributes:
        graph: The graph it was found in.
        root: The last node, whose first output the pattern describes.
        values: Values by the names of `var`, `const`, ... .
        named: Nodes by their `bind` names.
        nodes: Every matched node, the root first.
    """

    graph: Graph
    root: Node
    values: Mapping[str, Value]
    named: Mapping[str, Node]
    nodes: tuple[Node, ...]

    def __contains__(self, name: str) -> bool:
        """Whether a value or node of that name was matched."""
        return name in self.values or name in self.named

    def value(self, name: str) -> Value:
        """Return a matched value."""
        return self.values[name]

    def node(self, name: str) -> Node:
        """Return a matched node."""
        return self.named[name]

    def array(self, name: str) -> NDArray[Any]:
        """Return the array of a matched constant.

        Raises:
            KeyError: The value is missing or no constant.
        """
        array = self.graph.array(self.values[name])
        if array is None:
            raise KeyError(f"{name} is not a constant")
        return array


def possible(pattern: Pattern, present: Container[str]) -> bool:
    """Whether a graph with the operators `present` can hold a match at all."""
    if isinstance(pattern, Op):
        return any(each in present for each in pattern.types) and all(
            possible(each, present) for each in pattern.inputs
        )
    if isinstance(pattern, OneOf):
        return any(possible(choice, present) for choice in pattern.choices)
    return True


def roots(pattern: Pattern) -> frozenset[str]:
    """Operators at which a match of `pattern` can end."""
    if isinstance(pattern, Op):
        return frozenset(pattern.types)
    if isinstance(pattern, OneOf):
        return frozenset().union(*(roots(choice) for choice in pattern.choices))
    raise TypeError("a pattern must end in an operator")


def match(graph: Graph, pattern: Pattern, node: Node) -> Match | None:
    """Match `pattern` so that it ends at `node`; None if it does not."""
    for state in _node(graph, pattern, node, _State()):
        found = Match(graph, node, dict(state.values), dict(state.named), state.nodes)
        if _interior_is_private(found):
            return found
    return None


@dataclass(frozen=True)
class _State:
    values: Mapping[str, Value] = field(default_factory=dict)
    named: Mapping[str, Node] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()


def _node(graph: Graph, pattern: Pattern, node: Node, state: _State) -> Iterator[_State]:
    if isinstance(pattern, OneOf):
        for choice in pattern.choices:
            yield from _node(graph, choice, node, state)
        return
    if not isinstance(pattern, Op) or node.op_type not in pattern.types:
        return
    if not _may_fit(pattern, node):
        return
    if node.domain != pattern.domain and not (
        pattern.domain in ONNX_DOMAINS and node.domain in ONNX_DOMAINS
    ):
        return
    if state.nodes and node.graph is not state.nodes[0].graph:
        return
    if pattern.bind and pattern.bind in state.named and state.named[pattern.bind] is not node:
        return
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        return
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    count = len(pattern.inputs)
    if len(inputs) > count and not pattern.open:
        return
    inputs += [None] * (count - len(inputs))
    named = {**state.named, pattern.bind: node} if pattern.bind else state.named
    nodes = state.nodes if node in state.nodes else (*state.nodes, node)
    start = _State(state.values, named, nodes)
    wanted = [(pattern.inputs[i], i) for i in pattern.order]
    yield from _inputs(graph, wanted, inputs, start)
    if node.op_type in COMMUTATIVE and count == 2 == len(inputs):
        yield from _inputs(graph, wanted, inputs[::-1], start)


def _makers(pattern: Pattern) -> frozenset[str] | None:
    if isinstance(pattern, Op):
        return frozenset(pattern.types)
    if isinstance(pattern, OneOf):
        found = [_makers(choice) for choice in pattern.choices]
        return None if None in found else frozenset().union(*(each for each in found if each))
    if isinstance(pattern, Var) and pattern.constant:
        return frozenset({"", "Constant"})
    return None


def _may_fit(pattern: Op, node: Node) -> bool:
    """Look one step back only: most candidates fail here, before anything is built for them."""
    wanted, inputs = pattern.makers, node.inputs
    if len(wanted) == 2 == len(inputs) and node.op_type in COMMUTATIVE:
        first, second = _maker(inputs[0]), _maker(inputs[1])
        one, other = wanted
        return ((one is None or first in one) and (other is None or second in other)) or (
            (one is None or second in one) and (other is None or first in other)
        )
    return all(
        want is None or _maker(value) in want for want, value in zip(wanted, inputs, strict=False)
    )


def _maker(value: Value | None) -> str:
    producer = None if value is None else value.producer()
    return "" if producer is None else producer.op_type


def _inputs(
    graph: Graph,
    patterns: Sequence[tuple[Pattern, int]],
    values: Sequence[Value | None],
    state: _State,
) -> Iterator[_State]:
    if not patterns:
        yield state
        return
    pattern, index = patterns[0]
    for after in _value(graph, pattern, values[index], state):
        yield from _inputs(graph, patterns[1:], values, after)


def _value(graph: Graph, pattern: Pattern, value: Value | None, state: _State) -> Iterator[_State]:
    if isinstance(pattern, Var):
        if _fits(graph, pattern, value, state):
            if value is None or not pattern.name:
                yield state
            else:
                yield _State({**state.values, pattern.name: value}, state.named, state.nodes)
        return
    if isinstance(pattern, OneOf):
        for choice in pattern.choices:
            yield from _value(graph, choice, value, state)
        return
    producer = None if value is None else value.producer()
    if producer is not None and value is producer.outputs[0]:
        yield from _node(graph, pattern, producer, state)


def _fits(graph: Graph, pattern: Var, value: Value | None, state: _State) -> bool:
    if value is None:
        return pattern.optional
    if pattern.name and state.values.get(pattern.name, value) is not value:
        return False
    if pattern.constant is not None and graph.is_constant(value) is not pattern.constant:
        return False
    if pattern.scalar is None:
        return True
    found = graph.scalar(value)
    if found is None:
        return False
    tensor = graph.tensor(value)  # a value made by a Constant node may have no type of its own
    tolerance = 1e-4 if tensor is None else _ROUNDING.get(tensor.dtype, 1e-4)
    return math.isclose(found, pattern.scalar, rel_tol=tolerance, abs_tol=1e-12)


def _interior_is_private(found: Match) -> bool:
    inside = set(found.nodes)
    for node in found.nodes:
        if node is found.root:
            continue
        for out in node.outputs:
            if out.is_graph_output() or any(use.node not in inside for use in out.uses()):
                return False
    return True
