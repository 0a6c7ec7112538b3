"""Where a form goes: the MatMul, its operands, and constants that layers with one weight share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.lazy import derived

MICROSOFT = "com.microsoft"

# Blocks and 4-bit codes came with this opset, 2-bit codes with the other.
BLOCKED_SINCE, TWO_BITS_SINCE = 21, 25

# Constants written so far, by graph, result and role. Layers that share a weight are given the
# same result; what only one of them reads would otherwise be stored once for each.
_WRITTEN: WeakKeyDictionary[Graph, WeakKeyDictionary[Any, dict[str, Value]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Site:
    """A MatMul with a constant weight, and the result that goes in its place.

    Attributes:
        graph: The graph.
        node: The MatMul; new nodes come right before it.
        result: What the weight became.
        x: The data.
        weight: Name of the weight, for constants.
        dtype: Floating-point type of the product.
        shape: Shape of the weight.
    """

    graph: Graph
    node: Node
    result: Any
    x: Value
    weight: str
    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def float_type(self) -> np.dtype[Any]:
        """The product's type as NumPy has it."""
        return self.dtype.numpy()

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.node.name or self.node.op_type

    def constant(self, role: str, array: NDArray[Any]) -> Value:
        """Add a constant, or return the one that another layer with this result added."""
        return self._once(role, lambda hint: self.graph.constant(hint, array))

    def derived(
        self,
        role: str,
        source: NDArray[Any],
        compute: Callable[[NDArray[Any]], NDArray[Any]],
        dtype: Any,
        shape: Sequence[int],
    ) -> Value:
        """Add `compute(source)`, lazily where `source` lies on disk; see `qgraph.lazy`."""
        return self._once(
            role,
            lambda hint: derived(self.graph, hint, source, compute, dtype=dtype, shape=shape),
        )

    def insert(self, op_type: str, *inputs: Value | None, role: str, **options: Any) -> Value:
        """Add a node before the MatMul; return its result."""
        made = self.graph.insert(
            op_type, inputs, before=self.node, name=f"{self.name}_{role}", **options
        )
        return made.outputs[0]

    def typed(self, value: Value, role: str) -> Value:
        """Return float32 `value` in the product's type."""
        if self.dtype == ir.DataType.FLOAT:
            return value
        return self.insert("Cast", value, role=f"{role}_cast", attributes={"to": int(self.dtype)})

    def product(self, weight: Value) -> Value:
        """Add the MatMul by a computed float weight; return its result."""
        weight.type, weight.shape = ir.TensorType(self.dtype), ir.Shape(self.shape)
        return self.insert("MatMul", self.x, weight, role="product", like=self.node.outputs[0])

    def _once(self, role: str, make: Callable[[str], Value]) -> Value:
        known = _WRITTEN.setdefault(self.graph, WeakKeyDictionary()).setdefault(self.result, {})
        if role not in known or not known[role].is_initializer():
            known[role] = make(f"{self.weight}_{role}")
        return known[role]


def site(graph: Graph, node: Node, result: Any, shape: Sequence[int]) -> Site | str:
    """Return the place of a result of `shape`, or why it has none."""
    if not graph.is_standard(node, "MatMul") or node.inputs[0] is None or node.inputs[1] is None:
        return f"{node.op_type} is no MatMul: run linear_to_matmul first"
    weight = node.inputs[1]
    known = graph.shape(weight)
    if known is not None and known != tuple(shape):
        return f"its weight is {list(known)}, the result {list(shape)}"
    dtype = weight.dtype or ir.DataType.FLOAT
    if dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"its weight is {dtype.name.lower()}, not float32 or float16"
    name = weight.name or "weight"
    return Site(graph, node, result, node.inputs[0], name, dtype, tuple(shape))


def too_old(graph: Graph, what: str, since: int = BLOCKED_SINCE) -> str | None:
    """Say that the model's opset lacks something, or None."""
    if graph.opset >= since:
        return None
    return f"{what} need opset {since}, the model has {graph.opset}: raise normalize.opset"


def in_type(scale: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any] | str:
    """Return scales in the weight's type, or why they have no place there.

    Half precision rounds them, by at most 2^-11 of themselves, unless they were rounded before.
    """
    with np.errstate(over="ignore"):
        result: NDArray[Any] = scale.astype(dtype)
    if not np.isfinite(result).all() or ((result == 0) & (scale != 0)).any():
        return f"its scales do not fit {dtype}"
    return result
