"""Integers that are known although the tensors they come from are not: shapes and their parts.

A `Known` holds the elements of a scalar or vector: an int where the number is known, a token
where it is an unknown dimension (equal tokens are equal dimensions), None for anything else.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value

# An int, or a token that stands for one dimension, or None.
Element = Hashable | None

_MAX_ELEMENTS = 64
_INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})


@dataclass(frozen=True)
class Dim:
    """Token of a dimension without a number: its symbol, or the value and axis it belongs to."""

    symbol: str | tuple[Value, int]


@dataclass(frozen=True)
class Known:
    """Elements of an integer scalar or vector, each known, equal to a dimension, or unknown."""

    elements: tuple[Element, ...]
    scalar: bool
    dtype: ir.DataType = ir.DataType.INT64

    @property
    def complete(self) -> bool:
        """Whether every element is a number."""
        return all(isinstance(element, int) for element in self.elements)

    def array(self) -> NDArray[Any]:
        """Return the numbers as an array of the value's type."""
        array = np.array(self.elements, self.dtype.numpy())
        return array.reshape(()) if self.scalar else array


def dims(graph: Graph, value: Value | None) -> tuple[Element, ...] | None:
    """Return the dimensions of a value, with tokens for unknown ones; None if no rank is known."""
    shape = graph.shape(value)
    if shape is None or value is None:
        return None
    return tuple(
        dim if isinstance(dim, int) else Dim(dim if dim is not None else (value, axis))
        for axis, dim in enumerate(shape)
    )


class Tracker:
    """Follows shapes through the small integer arithmetic that exporters put behind them."""

    def __init__(self, graph: Graph) -> None:
        """Start with nothing known."""
        self._graph = graph
        self._known: dict[Value, Known] = {}
        self._unknown = False

    def visit(self, node: Node) -> Known | None:
        """Work out the node's first output, remember it, and return it."""
        rule = _RULES.get(node.op_type)
        if rule is None or node.domain:
            return None
        if node.op_type not in _SOURCES and not any(v in self._known for v in node.inputs if v):
            return None
        found = rule(self, node)
        if found is not None and len(found.elements) <= _MAX_ELEMENTS:
            self._known[node.outputs[0]] = found
            return found
        return None

    def get(self, value: Value | None) -> Known | None:
        """Return what is known about a value: tracked before, or a small integer constant."""
        if value is None:
            return None
        found = self._known.get(value)
        if found is not None:
            return found
        tensor = self._graph.tensor(value)
        if tensor is None or tensor.dtype not in _INTEGERS or tensor.size > _MAX_ELEMENTS:
            return None
        array = tensor.numpy()
        if array.ndim > 1:
            return None
        return Known(tuple(map(int, array.reshape(-1))), array.ndim == 0, tensor.dtype)

    def open_chains(self) -> bool:
        """Whether a shape was met that was not known, or not all of whose dimensions were."""
        return self._unknown or any(
            not known.complete and value.producer() is not None and value.uses()
            for value, known in self._known.items()
        )

    def length(self, value: Value | None) -> int | None:
        """Return the number of elements of a vector, or None if it is unknown or no vector."""
        shape = self._graph.shape(value)
        if shape is None or len(shape) != 1 or not isinstance(shape[0], int):
            return None
        return shape[0]

    def numbers(self, value: Value | None) -> tuple[int, ...] | None:
        """Return a value of which every element is known."""
        found = self.get(value)
        if found is None or not found.complete:
            return None
        return tuple(element for element in found.elements if isinstance(element, int))

    def ints(self, node: Node, index: int, name: str) -> tuple[int, ...] | None:
        """Return a parameter that is an attribute in old opsets and an input in new ones."""
        if len(node.inputs) > index and node.inputs[index] is not None:
            return self.numbers(node.inputs[index])
        value = Graph.attribute(node, name)
        return None if value is None else tuple(value)

    def shape_of(self, node: Node) -> Known | None:
        """Rule for Shape."""
        found = dims(self._graph, node.inputs[0])
        if found is None:
            self._unknown = True
            return None
        start = Graph.attribute(node, "start", 0)
        end = Graph.attribute(node, "end", len(found))
        return Known(found[slice(start, end)], scalar=False)

    def size_of(self, node: Node) -> Known | None:
        """Rule for Size."""
        found = dims(self._graph, node.inputs[0])
        if found is None or not all(isinstance(dim, int) for dim in found):
            return None
        return Known((_product(found),), scalar=True)


def _product(elements: tuple[Element, ...]) -> int:
    result = 1
    for element in elements:
        assert isinstance(element, int)
        result *= element
    return result


def _gather(tracker: Tracker, node: Node) -> Known | None:
    data, indices = tracker.get(node.inputs[0]), tracker.get(node.inputs[1])
    numbers = tracker.numbers(node.inputs[1])
    if data is None or indices is None or numbers is None or data.scalar:
        return None
    count = len(data.elements)
    if any(not -count <= index < count for index in numbers):
        return None
    picked = tuple(data.elements[index] for index in numbers)
    return Known(picked, indices.scalar, data.dtype)


def _slice(tracker: Tracker, node: Node) -> Known | None:
    data = tracker.get(node.inputs[0])
    starts = tracker.ints(node, 1, "starts")
    ends = tracker.ints(node, 2, "ends")
    stepped = len(node.inputs) > 4 and node.inputs[4] is not None
    steps = tracker.ints(node, 4, "steps") if stepped else (1,)
    if data is None or data.scalar or starts is None or ends is None or steps is None:
        return None
    if len(starts) != 1 or len(ends) != 1 or steps == (0,):
        return None
    return Known(data.elements[_clamped(starts[0], ends[0], steps[0], data)], False, data.dtype)


def _clamped(start: int, end: int, step: int, data: Known) -> slice:
    count = len(data.elements)
    # Going down, ONNX takes a start before the first element for the first; Python takes nothing.
    if step < 0 and start < -count:
        start = -count
    return slice(start, end, step)


def _concat(tracker: Tracker, node: Node) -> Known | None:
    parts = [tracker.get(value) for value in node.inputs]
    elements: tuple[Element, ...] = ()
    dtype = ir.DataType.INT64
    for part, value in zip(parts, node.inputs, strict=True):
        if part is None:
            length = tracker.length(value)
            if length is None or length > _MAX_ELEMENTS:
                return None
            elements += (None,) * length
            continue
        if part.scalar:
            return None
        elements, dtype = elements + part.elements, part.dtype
    return Known(elements, False, dtype)


def _to_vector(tracker: Tracker, node: Node) -> Known | None:
    data = tracker.get(node.inputs[0])
    axes = tracker.ints(node, 1, "axes")
    if data is None or not data.scalar or axes not in ((0,), (-1,)):
        return None
    return Known(data.elements, False, data.dtype)


def _to_scalar(tracker: Tracker, node: Node) -> Known | None:
    data = tracker.get(node.inputs[0])
    if data is None or data.scalar or len(data.elements) != 1:
        return None
    return Known(data.elements, True, data.dtype)


def _reshape(tracker: Tracker, node: Node) -> Known | None:
    data, target = tracker.get(node.inputs[0]), tracker.ints(node, 1, "shape")
    if data is None or target is None or len(target) > 1:
        return None
    if not target:
        return Known(data.elements, True, data.dtype) if len(data.elements) == 1 else None
    if target[0] not in (-1, len(data.elements)):
        return None
    return Known(data.elements, False, data.dtype)


def _same(tracker: Tracker, node: Node) -> Known | None:
    return tracker.get(node.inputs[0])


def _cast(tracker: Tracker, node: Node) -> Known | None:
    data = tracker.get(node.inputs[0])
    to = ir.DataType(Graph.attribute(node, "to"))
    if data is None or to not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    limit = 2**31
    if any(isinstance(e, int) and not -limit <= e < limit for e in data.elements):
        return None
    return Known(data.elements, data.scalar, to)


def _arithmetic(compute: Callable[[Element, Element], Element]) -> "_Rule":
    def rule(tracker: Tracker, node: Node) -> Known | None:
        left, right = tracker.get(node.inputs[0]), tracker.get(node.inputs[1])
        if left is None or right is None:
            return None
        pairs = _paired(left, right)
        if pairs is None:
            return None
        elements = tuple(compute(a, b) for a, b in pairs)
        dtype = ir.DataType.BOOL if node.op_type == "Equal" else left.dtype
        if dtype == ir.DataType.BOOL and node.op_type != "Equal":
            return None
        if any(isinstance(e, int) and not -(2**31) <= e < 2**31 for e in elements):
            return None  # it may wrap around
        return Known(elements, left.scalar and right.scalar, dtype)

    return rule


def _paired(left: Known, right: Known) -> list[tuple[Element, Element]] | None:
    a, b = left.elements, right.elements
    count = max(len(a), len(b))
    if len(a) not in (1, count) or len(b) not in (1, count) or not a or not b:
        return None
    a, b = (e * count if len(e) == 1 else e for e in (a, b))
    return list(zip(a, b, strict=True))


def _add(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return a if b == 0 else b if a == 0 else None


def _sub(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    if a is not None and a == b:
        return 0
    return a if b == 0 else None


def _mul(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return a if b == 1 else b if a == 1 else None


def _div(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        if b == 0:
            return None
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return a if b == 1 else None


def _equal(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    if a is not None and a == b:
        return 1
    # A dimension is never negative: exporters ask whether it is -1.
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Dim) and isinstance(other, int) and other < 0:
            return 0
    return None


def _where(tracker: Tracker, node: Node) -> Known | None:
    condition, yes, no = (tracker.get(value) for value in node.inputs)
    if condition is None or yes is None or no is None:
        return None
    count = max(len(k.elements) for k in (condition, yes, no))
    columns = []
    for known in (condition, yes, no):
        if len(known.elements) not in (1, count):
            return None
        columns.append(known.elements * count if len(known.elements) == 1 else known.elements)
    elements = tuple(
        (a if c else b) if isinstance(c, int) else (a if a == b else None)
        for c, a, b in zip(*columns, strict=True)
    )
    return Known(elements, all(k.scalar for k in (condition, yes, no)), yes.dtype)


def _reduce_prod(tracker: Tracker, node: Node) -> Known | None:
    data = tracker.get(node.inputs[0])
    if data is None or data.scalar or not data.complete:
        return None
    return Known((_product(data.elements),), not Graph.attribute(node, "keepdims", 1), data.dtype)


_Rule = Callable[[Tracker, Node], Known | None]

_SOURCES = frozenset({"Shape", "Size"})
_RULES: dict[str, _Rule] = {
    "Add": _arithmetic(_add),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _arithmetic(_div),
    "Equal": _arithmetic(_equal),
    "Gather": _gather,
    "Identity": _same,
    "Mul": _arithmetic(_mul),
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Shape": Tracker.shape_of,
    "Size": Tracker.size_of,
    "Slice": _slice,
    "Squeeze": _to_scalar,
    "Sub": _arithmetic(_sub),
    "Unsqueeze": _to_vector,
    "Where": _where,
}
