"""How many bytes a node would make of its constant inputs, worked out before it runs.

The table below is also the list of operators that are folded at all: deterministic ones whose
result size follows from the inputs' shapes and a few small parameters.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from qgraph.graph import Graph, Node

Tensors = Sequence[ir.TensorProtocol | None]
_Rule = Callable[[Node, Tensors], int]

# Parameters such as a target shape are this long at most; ONNX tensors have fewer axes anyway.
_MAX_PARAMETER = 1024
# One array axis more than this, and numpy can't index it.
_MAX_ELEMENTS = 2**60


class TooLargeError(Exception):
    """A parameter that would make an array of absurd size, or that is itself absurd."""


def result_bytes(node: Node, inputs: Tensors) -> int | None:
    """Return an upper bound for the bytes of a node's outputs; None if it is not to be folded.

    Raises:
        TooLargeError: The parameters ask for an array that no machine holds.
        ValueError: The inputs' shapes do not fit each other.
    """
    rule = _RULES.get(node.op_type)
    if rule is None or node.domain:
        return None
    elements = rule(node, inputs)
    if elements > _MAX_ELEMENTS:
        raise TooLargeError(f"{elements} elements")
    return elements * _itemsize(node, inputs)


def _itemsize(node: Node, inputs: Tensors) -> int:
    if node.op_type == "Cast":
        return math.ceil(ir.DataType(Graph.attribute(node, "to")).itemsize)
    if node.op_type in _INT64_RESULTS:
        return 8
    if node.op_type == "ConstantOfShape":
        value = Graph.attribute(node, "value")
        return 4 if value is None else math.ceil(value.dtype.itemsize)
    # All others return the type of what they work on; only Where has that in second place.
    source = inputs[1 if node.op_type == "Where" else 0]
    return 8 if source is None else math.ceil(source.dtype.itemsize)


def _shape(tensor: ir.TensorProtocol | None) -> tuple[int, ...]:
    return () if tensor is None else tuple(tensor.shape.numpy())


def _parameter(tensor: ir.TensorProtocol | None) -> list[int]:
    if tensor is None:
        return []
    if tensor.size > _MAX_PARAMETER:
        raise TooLargeError(f"a parameter of {tensor.size} numbers")
    return [int(number) for number in np.asarray(tensor.numpy()).reshape(-1)]


def _broadcast(node: Node, inputs: Tensors) -> int:
    # Not numpy's broadcast_shapes: that refuses what is too large with a message of its own.
    shapes = [_shape(tensor) for tensor in inputs if tensor is not None]
    rank = max((len(shape) for shape in shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return math.prod(
        0 if 0 in axis else max(axis)
        for axis in (set(sizes) for sizes in zip(*padded, strict=True))
    )


def _total(node: Node, inputs: Tensors) -> int:
    return sum(tensor.size for tensor in inputs if tensor is not None)


def _first(node: Node, inputs: Tensors) -> int:
    return 0 if inputs[0] is None else inputs[0].size


def _expand(node: Node, inputs: Tensors) -> int:
    target = _parameter(inputs[1])
    own = _shape(inputs[0])
    rank = max(len(own), len(target))
    own = (1,) * (rank - len(own)) + tuple(own)
    wanted = [1] * (rank - len(target)) + target
    return math.prod(max(a, b) if a and b else 0 for a, b in zip(own, wanted, strict=True))


def _tile(node: Node, inputs: Tensors) -> int:
    return _first(node, inputs) * math.prod(_parameter(inputs[1]))


def _constant_of_shape(node: Node, inputs: Tensors) -> int:
    return math.prod(_parameter(inputs[0]))


def _range(node: Node, inputs: Tensors) -> int:
    start, limit, delta = (float(np.asarray(t.numpy()).reshape(-1)[0]) for t in inputs if t)
    if not delta or not all(map(math.isfinite, (start, limit, delta))):
        raise ValueError("a Range that never ends")
    return max(math.ceil((limit - start) / delta), 0)


def _gather(node: Node, inputs: Tensors) -> int:
    shape = list(_shape(inputs[0]))
    del shape[Graph.attribute(node, "axis", 0)]
    return math.prod(shape) * math.prod(_shape(inputs[1]))


def _gather_nd(node: Node, inputs: Tensors) -> int:
    shape, indices = _shape(inputs[0]), _shape(inputs[1])
    batch = Graph.attribute(node, "batch_dims", 0)
    return math.prod(indices[:-1]) * math.prod(shape[batch + indices[-1] :])


def _second(node: Node, inputs: Tensors) -> int:
    return math.prod(_shape(inputs[1]))


def _pad(node: Node, inputs: Tensors) -> int:
    shape, pads = _shape(inputs[0]), _parameter(inputs[1])
    axes = _parameter(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else range(len(shape))
    grown = list(shape)
    for index, axis in enumerate(axes):
        grown[axis] += pads[index] + pads[index + len(pads) // 2]
    return math.prod(grown)


def _matmul(node: Node, inputs: Tensors) -> int:
    a, b = _shape(inputs[0]), _shape(inputs[1])
    rows = a[-2] if len(a) > 1 else 1
    columns = b[-1] if len(b) > 1 else 1
    return _broadcast_sizes(a[:-2], b[:-2]) * rows * columns


def _broadcast_sizes(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
    return math.prod(max(pair) if all(pair) else 0 for pair in pairs)


def _non_zero(node: Node, inputs: Tensors) -> int:
    return _first(node, inputs) * max(len(_shape(inputs[0])), 1)


_INT64_RESULTS = frozenset({"ArgMax", "ArgMin", "NonZero", "Shape", "Size"})

_ELEMENTWISE = """
    Abs Acos Add And Asin Atan BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Clip
    Cos Cosh Div Equal Erf Exp Floor Greater GreaterOrEqual Identity IsInf IsNaN LeakyRelu Less
    LessOrEqual Log Max Mean Min Mod Mul Neg Not Or Pow PRelu Reciprocal Relu Round Sigmoid Sign
    Sin Sinh Sqrt Sub Sum Tan Tanh Where Xor
"""
_REARRANGING = """
    Concat DepthToSpace Flatten Reshape ReverseSequence Slice SpaceToDepth Split Squeeze Transpose
    Trilu Unsqueeze
"""
_REDUCING = """
    ArgMax ArgMin CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare ScatterElements ScatterND Shape Size Softmax
"""

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _broadcast),
    **dict.fromkeys(_REARRANGING.split(), _total),
    **dict.fromkeys(_REDUCING.split(), _total),
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _second,
    "GatherND": _gather_nd,
    "MatMul": _matmul,
    "NonZero": _non_zero,
    "Pad": _pad,
    "Range": _range,
    "Tile": _tile,
}
