"""How many heads a product has, how often keys were repeated, and rotary position embeddings."""

import numpy as np

from qgraph.graph import ONNX_DOMAINS, Graph, Node, Value

# Operators that move elements and leave them as they are.
VIEWS = frozenset({"Cast", "Dropout", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_LAYOUT = VIEWS | {"Expand", "Flatten", "Gather", "Tile", "Transpose"}
_MAX_STEPS = 24


def unscaled(graph: Graph, value: Value) -> Value:
    """Step back over Mul and Div by one number, and Add of one (as Paddle's `scale` leaves it)."""
    for _ in range(_MAX_STEPS):
        node = value.producer()
        if node is None or not graph.is_standard(node, "Mul", "Div", "Add"):
            return value
        first, second = node.inputs
        if is_number(graph, second) and first is not None:
            value = first
        elif node.op_type != "Div" and is_number(graph, first) and second is not None:
            value = second
        else:
            return value
    return value


def is_number(graph: Graph, value: Value | None) -> bool:
    """Whether a value is one number: a constant of one element, or of rank 0."""
    return graph.scalar(value) is not None or graph.rank(value) == 0


def heads(graph: Graph, operand: Value) -> int | None:
    """Return the heads of one operand of an attention product; None if the shapes do not say.

    Args:
        graph: The graph.
        operand: [batch, heads, ...] with more axes before them or, where batch and heads were
            joined by a Reshape, [batch * heads, ...]; without heads, [batch, ...] or [...].
    """
    rank = graph.rank(operand)
    shape = graph.shape(operand)
    if rank is None or shape is None or rank < 2:
        return None
    if rank >= 4:
        return _known(shape[-3])
    joined = _reshape_behind(graph, operand)
    if joined is None:
        return 1
    before = graph.shape(joined.inputs[0])
    return _known(before[1]) if rank == 3 and before is not None and len(before) == 4 else None


def repeats(graph: Graph, operand: Value) -> int | None:
    """Return how many query heads share one head of a key operand; None if that is unknown.

    Recognised are Expand, Tile, Concat of each head as often as another, and Gather.
    """
    value: Value | None = operand
    for _ in range(_MAX_STEPS):
        node = None if value is None else unscaled(graph, value).producer()
        if node is None or not graph.is_standard(node):
            return 1
        found = _repeats(graph, node)
        if found != 1:
            return found
        if node.op_type not in _LAYOUT:
            return 1
        value = node.inputs[0]
    return 1


def is_rotary(graph: Graph, operand: Value) -> bool:
    """Whether a query or key operand passed through a rotary position embedding.

    Recognised are x * cos + rotate_half(x) * sin, the same written out for each half, for
    neighbouring pairs, for a part of each head or for the newest keys only, and RotaryEmbedding.
    """
    waiting, steps = [operand], 0
    while waiting and steps < _MAX_STEPS:
        steps += 1
        value = unscaled(graph, waiting.pop())
        node = value.producer()
        if node is not None and node.op_type == "RotaryEmbedding":
            return True
        if node is None or not graph.is_standard(node):
            continue
        if _rotates(node):
            return True
        if node.op_type == "Concat":
            waiting += [each for each in node.inputs if each is not None]
        elif node.op_type in _LAYOUT and node.inputs[0] is not None:
            waiting.append(node.inputs[0])
    return False


def _known(dim: int | str | None) -> int | None:
    return dim if isinstance(dim, int) else None


def _reshape_behind(graph: Graph, operand: Value) -> Node | None:
    value = operand
    for _ in range(_MAX_STEPS):
        node = unscaled(graph, value).producer()
        if node is None or not graph.is_standard(node, "Transpose", "Cast", "Identity", "Reshape"):
            return None
        if node.op_type == "Reshape":
            return node
        source = node.inputs[0]
        if source is None:
            return None
        value = source
    return None


def _repeats(graph: Graph, node: Node) -> int | None:
    if node.op_type == "Expand":
        return _expanded(graph, node)
    if node.op_type == "Tile":
        times = graph.array(node.inputs[1])
        return None if times is None else int(np.prod(times[1:-1], dtype=np.int64))
    if node.op_type == "Concat":
        parts = set(node.inputs)
        same = len({node.inputs.count(each) for each in parts}) == 1
        return len(node.inputs) // len(parts) if same else 1
    if node.op_type == "Gather":
        picked = graph.array(node.inputs[1])
        if picked is None or picked.ndim != 1:
            return 1
        _, counts = np.unique(picked, return_counts=True)
        return int(counts[0]) if len(set(counts.tolist())) == 1 else 1
    return 1


def _expanded(graph: Graph, node: Node) -> int | None:
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    if after is None:
        wanted = graph.array(node.inputs[1])
        after = None if wanted is None else tuple(int(d) for d in wanted)
    if before is None or after is None or len(before) != len(after):
        return None
    times: int = 1
    # The first axis is the batch and the last one is inside a head.
    for one, many in zip(before[1:-1], after[1:-1], strict=True):
        if one == 1 and many != 1:
            if not isinstance(many, int):
                return None
            times *= many
    return times


def _rotates(node: Node) -> bool:
    """Whether a standard node ends the arithmetic of a rotary embedding."""
    made = [_producer(each) for each in node.inputs]
    if node.op_type == "Add" and len(made) == 2:
        one, other = made
        return _is_rotation(one, other) or _is_rotation(other, one)
    if node.op_type == "Concat" and len(made) == 2:
        halves = [_through(each, "Unsqueeze") for each in node.inputs]
        types = sorted(each.op_type for each in halves if each is not None)
        return types == ["Add", "Sub"] and all(
            operand is not None and operand.op_type == "Mul"
            for half in halves
            if half is not None
            for operand in map(_producer, half.inputs)
        )
    return False


def _is_rotation(plain: Node | None, turned: Node | None) -> bool:
    """Whether the two are x * cos and rotate_half(x) * sin."""
    if plain is None or turned is None or plain.op_type != "Mul" or turned.op_type != "Mul":
        return False
    sources = [_half_turned(each) for each in turned.inputs]
    return any(each is not None and each in plain.inputs for each in sources)


def _half_turned(value: Value | None) -> Value | None:
    """Return x where `value` is Concat(-second part of x, first part of x)."""
    node = _through(value, "Reshape")
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2:
        return None
    negated, kept = (_through(each, "Unsqueeze") for each in node.inputs)
    if negated is None or negated.op_type != "Neg" or kept is None:
        return None
    part = _producer(negated.inputs[0])
    cuts = ("Slice", "Split", "Gather")
    if part is None or part.op_type not in cuts or kept.op_type not in cuts:
        return None
    return part.inputs[0] if part.inputs[0] is kept.inputs[0] else None


def _producer(value: Value | None) -> Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.domain in ONNX_DOMAINS and node.inputs else None


def _through(value: Value | None, op_type: str) -> Node | None:
    """Return the node that made a value, stepping over one node of the given operator."""
    node = _producer(value)
    return _producer(node.inputs[0]) if node is not None and node.op_type == op_type else node
