"""Layers whose weights can be quantized alone: products of an activation with a constant."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.lazy import release
from qgraph.passes.fusions._constants import constant

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# What may stand between a layer and the graph output whose head it is.
_BEHIND_HEAD = frozenset({"Add", "Cast", "Identity", "Reshape", "Softmax", "LogSoftmax", "Squeeze"})


@dataclass(eq=False)
class Layer:
    """y = x W, with W constant.

    Attributes:
        node: The MatMul.
        data: x, [..., K], or [E, ..., K] for E experts.
        weight: W, [K, N] or [E, K, N].
        others: More nodes that multiply by the same weight.
    """

    node: Node
    data: Value
    weight: Value
    others: list[Node] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the node, by which reports call the layer."""
        return self.node.name or ""

    @property
    def nodes(self) -> list[Node]:
        """All nodes that multiply by the weight."""
        return [self.node, *self.others]

    @property
    def shape(self) -> tuple[int, ...]:
        """[K, N] or [E, K, N]."""
        found = _tensor(self.weight)
        assert found is not None
        return found[1]

    @property
    def size(self) -> int:
        """K, the number of input channels."""
        return self.shape[-2]

    def matrix(self, graph: Graph) -> NDArray[np.floating]:
        """Return W; read from disk where it lies there."""
        array = constant(graph, self.weight)
        assert array is not None
        return array.astype(np.float32, copy=False)

    def release(self, graph: Graph) -> None:
        """Let go of the memory into which W was read, if it lies on disk."""
        value: Value | None = self.weight
        while value is not None and (node := value.producer()) is not None:
            value = node.inputs[0]
        tensor = graph.tensor(value)
        if isinstance(tensor, ir.ExternalTensor):
            release(tensor.numpy())


def find_layers(
    graph: Graph, *, exclude: Iterable[str], head: bool, least: int
) -> tuple[list[Layer], dict[str, str]]:
    """Find the layers to quantize.

    Args:
        graph: Its linear layers are MatMuls; `linear_to_matmul` sees to that.
        exclude: Globs of node names and operators that stay in float.
        head: Whether layers that make a graph output are among them.
        least: Weights with fewer elements stay in float.

    Returns:
        The layers in graph order, one a weight; and of all other linear nodes why they stay in
        float, by name.
    """
    layers: dict[Value, Layer] = {}
    refused: dict[str, str] = {}
    patterns = tuple(exclude)
    for node in graph.walk():
        if not graph.is_standard(node, "MatMul", "Gemm", "Conv", "ConvTranspose"):
            continue
        reason = _refusal(graph, node, patterns, head, least)
        if reason is not None:
            refused[node.name or ""] = reason
            continue
        data, weight = node.inputs[0], node.inputs[1]
        assert data is not None and weight is not None
        if weight in layers:
            layers[weight].others.append(node)
        else:
            layers[weight] = Layer(node, data, weight)
    return list(layers.values()), refused


def _refusal(
    graph: Graph, node: Node, exclude: tuple[str, ...], head: bool, least: int
) -> str | None:
    if node.graph is not graph.main:
        return "inside the body of another node"
    for pattern in exclude:
        if fnmatchcase(node.name or "", pattern) or fnmatchcase(node.op_type, pattern):
            return f"excluded by {pattern!r}"
    if node.op_type != "MatMul":
        return f"{node.op_type} is no product of rows with a matrix"
    found = _tensor(node.inputs[1])
    if found is None:
        first = graph.is_constant(node.inputs[0])
        return "its constant is the first operand" if first else "both operands are activations"
    if graph.is_constant(node.inputs[0]):
        return "both operands are constants"
    dtype, shape = found
    if dtype not in FLOATS:
        return f"its weight is {dtype.name.lower()}"
    if len(shape) not in (2, 3):
        return f"its weight has {len(shape)} axes, not 2 or 3"
    if len(shape) == 3 and graph.rank(node.inputs[0]) != 3:
        return "its weight has 3 axes and its input has not"
    if math.prod(shape) < least:
        return f"its weight {list(shape)} has fewer than {least} elements"
    if not head and is_head(graph, node):
        return "it makes a graph output; weight_only.head=true quantizes it too"
    return None


def _tensor(value: Value | None) -> tuple[ir.DataType, tuple[int, ...]] | None:
    """Type and shape of a constant, without reading it; None for anything else.

    A table that a Gather reads too has a Transpose in front of the MatMul.
    """
    node = None if value is None else value.producer()
    if node is not None and Graph.is_standard(node, "Transpose"):
        order = Graph.attribute(node, "perm")
        source = _tensor(node.inputs[0])
        if source is None:
            return None
        axes = range(len(source[1]))[::-1] if order is None else order
        return source[0], tuple(source[1][axis] for axis in axes)
    if value is None or value.is_graph_input() or value.const_value is None:
        return None
    return value.const_value.dtype, tuple(value.const_value.shape.numpy())


def is_head(graph: Graph, node: Node) -> bool:
    """Whether the node's result is a graph output, up to a bias and changes of form."""
    value = node.outputs[0]
    while not value.is_graph_output():
        reader = graph.only_reader(value)
        if reader is None or reader.op_type not in _BEHIND_HEAD:
            return False
        # A bias, and no shortcut: what a block adds to the stream is no head.
        if not all(v is value or graph.is_constant(v) for v in reader.inputs if v is not None):
            return False
        value = reader.outputs[0]
    return True
