"""Reading the parameters of QuantizeLinear and DequantizeLinear nodes, and finding their pairs."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.encoding import INTEGERS, Encoding
from qgraph.graph import Graph, Node, Value


@dataclass(frozen=True, eq=False)
class Parameters:
    """Constant parameters of one QuantizeLinear or DequantizeLinear.

    Attributes:
        dtype: Integer type of the codes, a key of `INTEGERS`.
        scale: Scale in its own type: of one element, [channels], or with `block` one axis of
            blocks and every other axis of the tensor.
        zero_point: int64, shape of `scale`.
        axis: Axis along which scales differ; None for one scale per tensor.
        block: Block length along `axis`; 0 for one scale an index.
    """

    dtype: str
    scale: NDArray[Any]
    zero_point: NDArray[np.int64]
    axis: int | None = None
    block: int = 0

    def encoding(self, rank: int) -> Encoding:
        """Return the same for a tensor of `rank` axes, as `qgraph.encoding` wants it.

        Raises:
            ValueError: The axis is out of range, or the scales' shape does not fit.
        """
        scale = self.scale.astype(np.float32)
        if self.axis is None:
            return Encoding(self.dtype, scale.reshape(()), self.zero_point.reshape(()))
        if not -rank <= self.axis < rank:
            raise ValueError(f"axis {self.axis} is out of range for {rank} axes")
        axis = self.axis % rank
        if self.block:
            if scale.ndim != rank:
                raise ValueError("blocked scales need as many axes as the tensor")
            block = tuple(self.block if i == axis else 1 for i in range(rank))
            return Encoding(self.dtype, scale, self.zero_point, block)
        shape = tuple(-1 if i == axis else 1 for i in range(rank))
        block = tuple(1 if i == axis else 0 for i in range(rank))
        return Encoding(self.dtype, scale.reshape(shape), self.zero_point.reshape(shape), block)

    def scaled(self, ratio: NDArray[np.float64]) -> "Parameters":
        """Return parameters whose scale is multiplied, and rounded once to its type."""
        scale = (self.scale.astype(np.float64) * ratio).astype(self.scale.dtype)
        return replace(self, scale=scale)


def parameters(graph: Graph, node: Node) -> Parameters | str:
    """Return the parameters of a Q or DQ node, or why they can't be known."""
    scale = graph.array(_input(node, 1))
    if scale is None:
        return "its scale is computed"
    if scale.dtype.kind == "f" and not np.isfinite(scale).all():
        return "its scale is not finite"
    dtype = code_type(graph, node)
    if dtype not in INTEGERS:
        return f"its codes are {dtype or 'of unknown type'}"
    zero: NDArray[np.int64] = np.zeros(scale.shape, np.int64)
    if _input(node, 2) is not None:
        found = graph.array(_input(node, 2))
        if found is None:
            return "its zero point is computed"
        if found.size != scale.size:
            return "its zero point and scale differ in size"
        zero = found.astype(np.int64).reshape(scale.shape)
    block = int(graph.attribute(node, "block_size", 0))
    if block == 0 and scale.size == 1:
        return Parameters(dtype, scale, zero)
    return Parameters(dtype, scale, zero, int(graph.attribute(node, "axis", 1)), block)


def code_type(graph: Graph, node: Node) -> str:
    """Return the type of a Q or DQ node's codes by name; "" where nothing tells it."""
    zero = _input(node, 2)
    tensor = graph.tensor(zero)
    codes = node.outputs[0] if node.op_type == "QuantizeLinear" else _input(node, 0)
    known = graph.tensor(codes)
    candidates = (
        tensor.dtype if tensor is not None else None,
        zero.dtype if zero is not None else None,
        known.dtype if known is not None else None,
    )
    for candidate in candidates:
        if candidate is not None:
            return candidate.name.lower()
    if node.op_type == "QuantizeLinear":
        wanted = graph.attribute(node, "output_dtype", 0)
        return ir.DataType(wanted).name.lower() if wanted else "uint8"
    if codes is None:
        return ""
    producer = codes.producer()
    if producer is not None and graph.is_standard(producer, "QuantizeLinear"):
        return code_type(graph, producer)
    return codes.dtype.name.lower() if codes.dtype is not None else ""


@dataclass(frozen=True, eq=False)
class Region:
    """A QuantizeLinear and every DequantizeLinear that reads its codes.

    Attributes:
        quantizer: The QuantizeLinear.
        parameters: Its parameters.
        readers: The DequantizeLinear nodes with theirs, whose zero points are the quantizer's.
    """

    quantizer: Node
    parameters: Parameters
    readers: tuple[tuple[Node, Parameters], ...]


def region(graph: Graph, quantizer: Node) -> Region | str:
    """Return where the codes of a QuantizeLinear go, or why they can't be changed."""
    own = parameters(graph, quantizer)
    if isinstance(own, str):
        return own
    codes = quantizer.outputs[0]
    if codes.is_graph_output():
        return "its codes are a graph output"
    readers: dict[Node, Parameters] = {}
    for use in codes.uses():
        if not graph.is_standard(use.node, "DequantizeLinear") or use.idx != 0:
            return f"its codes are read by {use.node.op_type}"
        other = parameters(graph, use.node)
        if isinstance(other, str):
            return f"of a DequantizeLinear that reads it, {other}"
        same_form = (other.axis, other.block) == (own.axis, own.block)
        if not same_form or not np.array_equal(other.zero_point, own.zero_point):
            return "a DequantizeLinear that reads it has other zero points"
        readers[use.node] = other
    return Region(quantizer, own, tuple(readers.items()))


class Constants:
    """Adds scales and zero points to the graph, equal ones once."""

    def __init__(self, graph: Graph) -> None:
        """Start with none."""
        self.graph = graph
        self._known: dict[tuple[str, tuple[int, ...], bytes], Value] = {}

    def get(self, hint: str, array: NDArray[Any]) -> Value:
        """Return a constant that holds `array`."""
        key = str(array.dtype), array.shape, array.tobytes()
        if key not in self._known:
            self._known[key] = self.graph.constant(hint, array)
        return self._known[key]


def put(
    constants: Constants, node: Node, new: Parameters, hint: str, codes: Value | None = None
) -> None:
    """Give a Q or DQ node new parameters, and a DQ new codes."""
    graph = constants.graph
    dtype = INTEGERS[new.dtype][2]
    if codes is not None:
        graph.set_input(node, 0, codes)
    graph.set_input(node, 1, constants.get(f"{hint}_scale", new.scale))
    zero = new.zero_point.astype(dtype).reshape(new.scale.shape)
    graph.set_input(node, 2, constants.get(f"{hint}_zero_point", zero))
    if node.op_type == "QuantizeLinear":
        if graph.attribute(node, "output_dtype", 0):
            graph.set_attribute(node, "output_dtype", int(element_type(new.dtype)))
        node.outputs[0].type = ir.TensorType(element_type(new.dtype))


def element_type(dtype: str) -> ir.DataType:
    """Return ONNX's number for an integer type's name."""
    return ir.DataType[dtype.upper()]


def is_symmetric(found: Parameters) -> bool:
    """Whether codes are signed and zero is code 0."""
    return found.dtype in ("int8", "int4") and not found.zero_point.any()


def moves(bound: float) -> str:
    """Return how far values move, for reports."""
    return f"values move by at most {bound:.4g}" if bound else "exact"


def label(node: Node) -> str:
    """Return a name for reports."""
    return node.name or node.outputs[0].name or node.op_type


def _input(node: Node, index: int) -> Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
