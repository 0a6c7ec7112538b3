"""Turns the planned weights into integer codes."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.encoding import SMALLEST_SCALE, Encoding, dequantize, quantize
from qgraph.facts import Plan, QuantizedWeight
from qgraph.graph import Graph, Node, Value
from qgraph.passes.weights import weight_quantizer
from qgraph.passes.weights.rtn import relative_loss
from qgraph.pipeline import Pass, PassReport

# Bias codes stay below this, so that int32 accumulators keep room for the products.
BIAS_LIMIT = 2.0**30


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Quantize the weights in the plan, per output channel.

    A channel whose bias would not fit into int32 with the product of the two scales (nearly dead
    channels have almost no scale) gets a coarser scale, which costs it nothing it can show.

    Attributes:
        method: Weight quantizer; see `qgraph.passes.weights`.
    """

    method: str = "rtn"

    name: ClassVar[str] = "quantize_weights"
    needs: ClassVar[frozenset[str]] = frozenset({"plan", "encodings"})
    gives: ClassVar[frozenset[str]] = frozenset({"weights"})
    numerics = "rounding"

    def __post_init__(self) -> None:
        """Refuse an unknown method before anything runs."""
        weight_quantizer(self.method)

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Write `facts.weights`."""
        plan: Plan = graph.facts.get("plan")
        solve = weight_quantizer(self.method)
        report = PassReport()
        found: dict[tuple[str, int], QuantizedWeight] = {}
        # Layers that share a weight share its codes, unless a bias asks for other scales.
        solved: dict[tuple[Value, int], QuantizedWeight] = {}
        nodes = {node.name: node for node in graph.nodes()}
        for done, ((name, index), placement) in enumerate(plan.weights.items()):
            node = nodes[name]
            value, axis = node.inputs[index], placement.spec.axis
            weight = graph.array(value)
            assert weight is not None and value is not None and axis is not None
            matrix = np.moveaxis(weight, axis, -1).reshape(-1, weight.shape[axis])
            if (value, axis) not in solved:
                codes, encoding, loss = solve(matrix, replace(placement.spec, axis=1), None)
                solved[value, axis] = QuantizedWeight(
                    _back(codes, weight.shape, axis),
                    _back_encoding(encoding, weight.ndim, axis),
                    loss,
                )
            found[name, index] = _fit_bias(graph, node, matrix, solved[value, axis], axis)
            report.details.append(f"{name}: relative error {found[name, index].loss:.3g}")
            context.progress("quantizing weights", done + 1, len(plan.weights))
        graph.facts.weights = found
        return report


def _fit_bias(
    graph: Graph, node: Node, matrix: NDArray[Any], weight: QuantizedWeight, axis: int
) -> QuantizedWeight:
    """Change the scales of channels whose bias they can't express.

    The bias is counted in steps of data scale times weight scale. A channel with small weights
    gets a larger scale, so that its bias fits into int32; one whose weights are all zero, and
    which therefore has no scale of its own, gets the one that expresses its bias best.

    Args:
        graph: The graph, with encodings.
        node: The node.
        matrix: Its weight, float [K, N].
        weight: The same, quantized.
        axis: Axis of the channels in the weight's own shape.
    """
    least = _smallest_scale(graph, node)
    if least is None:
        return weight
    old = weight.encoding.scale.reshape(-1)
    dead = ~matrix.any(axis=0)
    scale = np.where(dead, least, np.maximum(old, least)).astype(np.float32)
    changed = scale != old
    if not changed.any():
        return weight
    flat = Encoding(weight.encoding.dtype, scale[None, :], np.zeros((1, scale.size), np.int64))
    codes = np.moveaxis(weight.codes, axis, -1).reshape(matrix.shape).copy()
    # The other channels keep the codes that the weight quantizer chose.
    codes[:, changed] = quantize(matrix, flat)[:, changed]
    loss = relative_loss(matrix, dequantize(codes, flat))
    shape = weight.codes.shape
    return QuantizedWeight(_back(codes, shape, axis), _back_encoding(flat, len(shape), axis), loss)


def _smallest_scale(graph: Graph, node: Node) -> NDArray[np.float64] | None:
    """Least weight scales, float64 [N], with which the node's bias fits; None without int32."""
    plan: Plan = graph.facts.get("plan")
    if (node.name or "", 2) not in plan.biases:
        return None
    bias = graph.array(node.inputs[2])
    encodings: dict[str, Encoding] = graph.facts.get("encodings")
    data = node.inputs[0]
    if bias is None or data is None:
        return None
    scale = float(encodings[data.name or ""].scale)
    size = np.abs(bias.astype(np.float64)) / BIAS_LIMIT
    # The product of the two scales must be a normal float32 number too.
    least: NDArray[np.float64] = np.maximum(size, 2 * SMALLEST_SCALE) / scale
    return np.maximum(least, SMALLEST_SCALE)


def _back(matrix: NDArray[Any], shape: tuple[int, ...], axis: int) -> NDArray[Any]:
    rest = tuple(n for i, n in enumerate(shape) if i != axis)
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(*rest, shape[axis]), -1, axis))


def _back_encoding(encoding: Encoding, ndim: int, axis: int) -> Encoding:
    shape = tuple(-1 if i == axis else 1 for i in range(ndim))
    block = tuple(1 if i == axis else 0 for i in range(ndim))
    return Encoding(
        encoding.dtype, encoding.scale.reshape(shape), encoding.zero_point.reshape(shape), block
    )
