"""Which operand of a residual Add is added inside a convolution's kernel."""

from functools import cached_property
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING

from qgraph.graph import Graph, Node, Value

if TYPE_CHECKING:
    import networkx as nx


class Residuals:
    """The Adds of a graph and the convolutions in front of them.

    Attributes:
        backbones: By value, the convolution whose kernel computes it, without a residual Add.
    """

    def __init__(self, graph: Graph, backbones: dict[Value, Node]) -> None:
        """Nothing is looked up yet."""
        self.graph, self.backbones = graph, backbones

    def inner(self, add: Node) -> int | str | None:
        """Which operand of `add` stays in float, because a kernel adds the other one to it.

        With convolutions in front of both operands it is the one with the longer path to their
        lowest common ancestor: the other one is the shortcut. With a convolution in front of one, it
        is that operand, unless the other is computed from it.

        Returns:
            Index of the operand; None where both are quantized; or why the Add stays in float.

        Source: NVIDIA Model Optimizer's treatment of residual Adds for TensorRT.
        """
        first, second = add.inputs[:2]
        assert first is not None and second is not None
        one, other = self.backbones.get(first), self.backbones.get(second)
        if any(node.op_type == "Softmax" for node in self.graph.readers(add.outputs[0])):
            return "mask in front of a Softmax, which needs float's range"
        if one is None and other is None:
            return "no convolution's kernel can add its operands"
        if one is other:
            return "both operands come from one kernel"
        shapes = self.graph.shape(first), self.graph.shape(second)
        if None not in shapes and shapes[0] != shapes[1]:
            return "its operands differ in shape"
        if one is not None and other is not None:
            return self._longer(first, second)
        index, backbone = (0, one) if one is not None else (1, other)
        shortcut = second if index == 0 else first
        assert backbone is not None
        return None if self._comes_from(shortcut, backbone) else index

    def _longer(self, first: Value, second: Value) -> int:
        """Index of the value that is further from what both are computed from."""
        one, other = first.producer(), second.producer()
        assert one is not None and other is not None
        _, to_one, to_other = self._meeting(one, other)
        if to_one == to_other:  # the later one can add what the earlier one has computed
            return 0 if self._order[one] > self._order[other] else 1
        return 0 if to_one > to_other else 1

    def _comes_from(self, value: Value, backbone: Node) -> bool:
        producer = value.producer()
        return producer is not None and self._meeting(producer, backbone)[0] is backbone

    def _meeting(self, one: Node, other: Node) -> tuple[Node | Value | None, int, int]:
        """Lowest common ancestor, and the shortest paths from it to both; (None, 0, 0) if none.

        Goes back from the later node to the earlier one, so it sees no more of the graph than lies
        between the two and where they meet; networkx would see all of it for every Add.
        """
        lengths: dict[Node | Value, list[float]] = {one: [0, inf], other: [inf, 0]}
        if one is other:
            return one, 0, 0
        waiting = [(-self._order[node], node_id) for node_id, node in enumerate((one, other))]
        found: list[Node | Value] = [one, other]
        heapify(waiting)
        while waiting:
            node = found[heappop(waiting)[1]]
            mine = lengths[node]
            if max(mine) < inf:  # all that reads it has been seen, so both paths are final
                return node, int(mine[0]), int(mine[1])
            for source in self._view.predecessors(node):
                if source not in lengths:
                    lengths[source] = [inf, inf]
                    heappush(waiting, (-self._order[source], len(found)))
                    found.append(source)
                theirs = lengths[source]
                lengths[source] = [min(a, b + 1) for a, b in zip(theirs, mine, strict=True)]
        return None, 0, 0

    @cached_property
    def _view(self) -> "nx.DiGraph[Node | Value]":
        """Nodes and, since a network's input may be what two paths share, graph inputs."""
        import networkx as nx

        view: nx.DiGraph[Node | Value] = nx.DiGraph(self.graph.view())
        for value in self.graph.inputs:
            view.add_edges_from((value, node) for node in self.graph.readers(value))
        return view

    @cached_property
    def _order(self) -> dict[Node | Value, int]:
        """Position of every node; graph inputs come before all of them."""
        order: dict[Node | Value, int] = {node: i for i, node in enumerate(self.graph.main)}
        return order | {value: -1 - i for i, value in enumerate(self.graph.inputs)}
