"""What values computed from lengths alone are, at lengths of one's choice: masks, rotary tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.passes.cleanup._evaluate import Evaluator, quiet_numpy

Array = NDArray[Any]
# (graph input, axis) of every dynamic length, by its symbol.
Axes = Mapping[str, tuple[Value, int]]

# Masks and tables of exporters have up to some 60 nodes.
_MOST_NODES = 200
_LARGEST = 1 << 24


class UnknownError(Exception):
    """A value depends on more than lengths; the message says on what."""


def dynamic_axes(graph: Graph) -> dict[str, tuple[Value, int]]:
    """Return where each symbol of the graph inputs' shapes stands first."""
    found: dict[str, tuple[Value, int]] = {}
    for value in graph.inputs:
        for axis, dim in enumerate(graph.shape(value) or ()):
            if isinstance(dim, str):
                found.setdefault(dim, (value, axis))
    return found


@dataclass
class AtLengths:
    """Evaluates values of a graph at given lengths of its inputs' dynamic axes.

    Attributes:
        graph: The graph.
        lengths: By symbol.
    """

    graph: Graph
    lengths: Mapping[str, int]
    _known: dict[Value, Array] = field(default_factory=dict)
    _nodes: int = 0

    def __post_init__(self) -> None:
        """Prepare."""
        self._evaluator = Evaluator(self.graph.opset)

    def __call__(self, value: Value) -> Array:
        """Return the value.

        Raises:
            UnknownError: It depends on more than lengths, or takes too long to compute.
        """
        constant = self.graph.tensor(value)
        if constant is not None:
            return constant.numpy()
        if value not in self._known:
            self._compute(value)
        return self._known[value]

    def _compute(self, value: Value) -> None:
        node = value.producer()
        if node is None:
            raise UnknownError(f"the data of input {value.name!r}")
        self._nodes += 1
        if self._nodes > _MOST_NODES or not self.graph.is_standard(node):
            raise UnknownError(f"the result of {node.name!r}")
        if node.op_type == "Shape":
            self._known[value] = self._shape(node)
            return
        inputs = [None if each is None else self(each) for each in node.inputs]
        if sum(each.size for each in inputs if each is not None) > _LARGEST:
            raise UnknownError(f"the large data of {node.name!r}")
        try:
            with quiet_numpy():
                results = self._evaluator.run(node, inputs)
        except Exception as error:
            raise UnknownError(f"the result of {node.name!r}") from error
        self._known.update(zip(node.outputs, results, strict=False))

    def _shape(self, node: Node) -> Array:
        dims = self.graph.shape(node.inputs[0])
        lengths = [self.lengths.get(d) if isinstance(d, str) else d for d in dims or (None,)]
        first, last = (self.graph.attribute(node, name) for name in ("start", "end"))
        lengths = lengths[first:last]
        if None in lengths:
            raise UnknownError(f"the unknown shape of {node.inputs[0].name!r}")  # type: ignore[union-attr]
        return np.array(lengths, np.int64)


def constants_behind(graph: Graph, value: Value) -> list[Value]:
    """Return the constants that lead to a value which is computed from lengths."""
    found, waiting, seen = [], [value], {value}
    while waiting:
        here = waiting.pop()
        if graph.is_constant(here):
            found.append(here)
            continue
        node = here.producer()
        if node is None or node.op_type == "Shape":
            continue
        fresh = [each for each in node.inputs if each is not None and each not in seen]
        waiting += fresh
        seen.update(fresh)
    return found
