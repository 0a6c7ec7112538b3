"""Reading constants that a fusion folds, and making new ones; initializers are never modified."""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value

FloatArray = NDArray[np.float64]

# Element types whose arithmetic a fold may redo: by ONNX type number, for Cast.
_FLOATS: dict[int, Any] = {
    1: np.float32,
    10: np.float16,
    11: np.float64,
    16: ml_dtypes.bfloat16,
}
# Distance from 1 to the next number, by type; the types are those of `_FLOATS`.
EPSILON: dict[np.dtype[Any], float] = {
    np.dtype(np.float32): 2.0**-23,
    np.dtype(np.float16): 2.0**-10,
    np.dtype(np.float64): 2.0**-52,
    np.dtype(ml_dtypes.bfloat16): 2.0**-7,
}
_SMALLEST_NORMAL: dict[np.dtype[Any], float] = {
    np.dtype(np.float32): 2.0**-126,
    np.dtype(np.float16): 2.0**-14,
    np.dtype(np.float64): 2.0**-1022,
    np.dtype(ml_dtypes.bfloat16): 2.0**-126,
}
# Chains of views on a weight are short; a longer one is left to constant folding.
_MAX_VIEWS = 16


def constant(graph: Graph, value: Value | None) -> NDArray[Any] | None:
    """Return a floating-point constant, seen through Identity, Cast, Transpose and Reshape.

    Returns:
        The array in its own type, or None where `value` is no constant, is not of type float16,
        bfloat16, float32 or float64, or stands behind other nodes.
    """
    views: list[Node] = []
    while value is not None and not graph.is_constant(value):
        node = value.producer()
        if node is None or len(views) == _MAX_VIEWS or not node.inputs:
            return None
        if not graph.is_standard(node, "Identity", "Cast", "Transpose", "Reshape"):
            return None
        views.append(node)
        value = node.inputs[0]
    array = graph.array(value)
    for node in reversed(views):
        array = None if array is None else _view(graph, node, array)
    return array if array is not None and array.dtype in EPSILON else None


def _view(graph: Graph, node: Node, array: NDArray[Any]) -> NDArray[Any] | None:
    if node.op_type == "Identity":
        return array
    if node.op_type == "Cast":
        dtype = _FLOATS.get(graph.attribute(node, "to"))
        return None if dtype is None or array.dtype not in EPSILON else array.astype(dtype)
    if node.op_type == "Transpose":
        return array.transpose(graph.attribute(node, "perm"))
    shape = graph.array(node.inputs[1]) if len(node.inputs) == 2 else None
    if shape is None or graph.attribute(node, "allowzero", 0):
        return None
    wanted = [int(d) for d in shape]
    if any(d == 0 and axis >= array.ndim for axis, d in enumerate(wanted)):
        return None
    return array.reshape([d or array.shape[axis] for axis, d in enumerate(wanted)])


def scaled(weight: NDArray[Any], factor: FloatArray) -> NDArray[Any] | None:
    """Multiply in float64 and round once, back to the weight's type.

    Args:
        weight: Array [D0, ...] of a floating-point type.
        factor: Array of the same rank that broadcasts to the weight's shape.

    Returns:
        A new array; None where it overflows, is not finite, or where even the largest product is
        so small that the type has fewer digits there (subnormal).
    """
    result = np.empty(weight.shape, weight.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        # One pass without float64 copies: NumPy converts in small buffers both ways.
        np.multiply(weight, factor, out=result, dtype=np.float64, casting="unsafe")
        # Of NaN too, which a maximum lets through.
        top = float(max(result.max(initial=0.0), -result.min(initial=0.0)))
    if not np.isfinite(top):
        return None
    if top < _SMALLEST_NORMAL[weight.dtype] and ((weight != 0) & (factor != 0)).any():
        return None
    return result


def rounded(exact: FloatArray, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """Round a bias or another sum's term to `dtype`; None where that overflows or is NaN."""
    with np.errstate(over="ignore"):
        result = exact.astype(dtype)
    return result if np.isfinite(result.astype(np.float64)).all() else None


def folded(graph: Graph, old: Value, array: NDArray[Any]) -> Value:
    """Add `array` as the constant that takes the place of `old` for one reader."""
    name = old.name or "constant"
    return graph.constant(name if name.endswith("_folded") else f"{name}_folded", array)


def standing_in(value: Value, root: Node) -> Value:
    """Return `value`, which from now on holds what `root` computed, under that result's name.

    So a name that means something in the original model means the same afterwards, and the names
    of values that no longer exist vanish. For graph outputs `Graph.replace` does it.
    """
    old = root.outputs[0]
    if not old.is_graph_output():
        value.name, old.name = old.name, value.name
    return value
