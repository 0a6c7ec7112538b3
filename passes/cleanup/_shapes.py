"""Questions about shapes that several clean-up passes ask."""

from collections.abc import Sequence

from qgraph.graph import Graph, Node, Value


def same_shape(graph: Graph, one: Value | None, other: Value | None) -> bool:
    """Whether two values surely have the same shape: all dimensions known and equal."""
    a, b = graph.shape(one), graph.shape(other)
    return a is not None and a == b and all(isinstance(dim, int) for dim in a)


def same_shape_if_same_size(graph: Graph, one: Value | None, other: Value | None) -> bool:
    """Whether two values that have the same number of elements surely have the same shape.

    So it is if they agree in all axes but one; the sizes then settle that one, unless an axis is
    empty.
    """
    a, b = graph.shape(one), graph.shape(other)
    if a is None or b is None or len(a) != len(b):
        return False
    unsettled = 0
    for x, y in zip(a, b, strict=True):
        if isinstance(x, int) and isinstance(y, int) and x != y:
            return False
        if x == 0 or y == 0:
            return False
        unsettled += not (isinstance(x, int) and isinstance(y, int))
    return unsettled <= 1


def ints(graph: Graph, node: Node, index: int, name: str) -> tuple[int, ...] | None:
    """Return integers that are an attribute in old opsets and an input in new ones.

    Args:
        graph: The graph.
        node: The node.
        index: Position of the input.
        name: Name of the attribute.

    Returns:
        The numbers; None if there are none, or they are computed.
    """
    if len(node.inputs) > index and node.inputs[index] is not None:
        array = graph.array(node.inputs[index])
        return None if array is None else tuple(int(number) for number in array.reshape(-1))
    value = Graph.attribute(node, name)
    return None if value is None else tuple(value)


def has(node: Node, index: int) -> bool:
    """Whether the node has an input at that position."""
    return len(node.inputs) > index and node.inputs[index] is not None


def replaceable(old: Value, new: Value) -> bool:
    """Whether everything that reads `old` can read `new` without an Identity to carry the name."""
    if not old.is_graph_output():
        return True
    producer = new.producer()
    if producer is None or new.is_graph_output():
        return False
    return producer.graph is old.graph


def compose(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """Return the permutation of one Transpose that does what `first` and then `second` do."""
    return tuple(first[axis] for axis in second)
