"""Which node of one model is which of another.

Nodes are paired in this order, always with the same operator:

1. the same computation from the graph inputs on, whatever the names (a hash of operator,
   attributes and what feeds it); among equals, those with the same name,
2. the same node name, where it is the only one in both models,
3. the same name of the first output,
4. the same attributes, reading a value that was paired before,
5. the same attributes, read by a node that was paired before.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterator

from qgraph.fingerprint import Fingerprints, attributes_of, walk
from qgraph.graph import Graph, Node, Value


class Pairs:
    """Which node and value of one model is which of the other.

    Attributes:
        a: The first model.
        b: The second one.
        prints: Fingerprints of both.
        all_a: Nodes of the first, in order, those of bodies included.
        all_b: The same of the second.
        node: Node of the first -> node of the second.
        value: Value of the first -> value of the second.
        taken: Nodes of the second that are paired.
        taken_constants: Constants of the second that are paired.
    """

    def __init__(self, a: Graph, b: Graph) -> None:
        """Pair everything that can be."""
        self.a, self.b = a, b
        self.prints = Fingerprints(a), Fingerprints(b)
        self.all_a, self.all_b = list(walk(a)), list(walk(b))
        self.node: dict[Node, Node] = {}
        self.value: dict[Value, Value] = {}
        self.taken: set[Node] = set()
        self.taken_constants: set[Value] = set()
        self._pair_interface()
        self._pair_by_computation()
        self._pair_constants()
        self._pair_by(lambda node: node.name)
        self._pair_by(lambda node: node.outputs[0].name if node.outputs else None)
        self._pair_by_inputs()
        self._pair_by_readers()

    def _pair(self, node: Node, other: Node) -> None:
        self.node[node] = other
        self.taken.add(other)
        self.value.update(zip(node.outputs, other.outputs, strict=False))

    def _pair_interface(self) -> None:
        by_name = {v.name: v for v in self.b.main.inputs}
        for index, value in enumerate(self.a.main.inputs):
            other = by_name.get(value.name)
            if other is None and index < len(self.b.main.inputs):
                other = self.b.main.inputs[index]
            if other is not None:
                self.value[value] = other

    def _pair_by_computation(self) -> None:
        ours, theirs = self.prints
        self._pair_equal(lambda n: (ours.node(n), n.name), lambda n: (theirs.node(n), n.name))
        self._pair_equal(ours.node, theirs.node)

    def _pair_equal(
        self, ours: Callable[[Node], Hashable], theirs: Callable[[Node], Hashable]
    ) -> None:
        """Pair the nodes left over that have the same key, in order."""
        groups: dict[Hashable, deque[Node]] = defaultdict(deque)
        for node in self.all_b:
            if node not in self.taken:
                groups[theirs(node)].append(node)
        for node in self.all_a:
            if node not in self.node and (group := groups.get(ours(node))):
                self._pair(node, group.popleft())

    def _pair_constants(self) -> None:
        """By name, then by content."""
        theirs = list(constants(self.b))
        by_name = {value.name: value for value in theirs}
        left: list[Value] = []
        for value in constants(self.a):
            other = by_name.pop(value.name, None)
            if other is not None:
                self.value[value] = other
            else:
                left.append(value)
        by_content: dict[bytes, list[Value]] = defaultdict(list)
        for value in by_name.values():
            by_content[self.prints[1].value(value)].append(value)
        for value in left:
            group = by_content.get(self.prints[0].value(value), [])
            if group:
                self.value[value] = group.pop(0)
        self.taken_constants = {self.value[v] for v in constants(self.a) if v in self.value}

    def _pair_by(self, key: Callable[[Node], str | None]) -> None:
        """Pair nodes by a name that only one of the rest has, in either model."""
        left = [n for n in self.all_a if n not in self.node]
        right = [n for n in self.all_b if n not in self.taken]
        ours, theirs = Counter(map(key, left)), Counter(map(key, right))
        found = {key(n): n for n in right}
        for node in left:
            name = key(node)
            other = found.get(name)
            if not name or other is None or ours[name] > 1 or theirs[name] > 1:
                continue
            if (other.op_type, other.domain) == (node.op_type, node.domain):
                self._pair(node, other)

    def _pair_by_inputs(self) -> None:
        self._pair_equal(
            lambda node: self._signature(node, theirs=False),
            lambda node: self._signature(node, theirs=True),
        )

    def _pair_by_readers(self) -> None:
        """Pair what feeds the same input of nodes that are paired, from the outputs backwards."""
        for reader in reversed(self.all_a):
            other = self.node.get(reader)
            if other is None:
                continue
            for mine, yours in zip(reader.inputs, other.inputs, strict=False):
                if mine is None or yours is None:
                    continue
                self._pair_constant(mine, yours)
                node, found = mine.producer(), yours.producer()
                if node is None or found is None or node in self.node or found in self.taken:
                    continue
                if self._kind(node, self.prints[0]) == self._kind(found, self.prints[1]):
                    self._pair(node, found)

    def _pair_constant(self, mine: Value, yours: Value) -> None:
        """Pair constants with other names and other content, which play the same part."""
        constant = mine.is_initializer() and yours.is_initializer()
        if constant and mine not in self.value and yours not in self.taken_constants:
            self.value[mine] = yours
            self.taken_constants.add(yours)

    def _signature(self, node: Node, theirs: bool) -> Hashable:
        """Operator, attributes and the first input, as a value of the second model."""
        first = next((v for v in node.inputs if v is not None), None)
        if first is not None and not theirs:
            first = self.value.get(first)
            if first is None:
                return None
        return (self._kind(node, self.prints[theirs]), len(node.inputs), first)

    @staticmethod
    def _kind(node: Node, prints: Fingerprints) -> Hashable:
        return (node.domain, node.op_type, tuple(sorted(attributes_of(node, prints).items())))


def constants(graph: Graph) -> Iterator[Value]:
    """Yield the initializers of a model, those of bodies included."""
    for each in graph.graphs():
        yield from each.initializers.values()
