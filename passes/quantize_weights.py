"""Turns the planned weights into integer codes."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.encoding import Encoding, dequantize, quantize
from qgraph.facts import Plan, QuantizedWeight
from qgraph.graph import Graph, Node
from qgraph.passes.weights import weight_quantizer
from qgraph.passes.weights.rtn import relative_loss
from qgraph.pipeline import Pass, PassReport

# Bias codes stay below this, so that int32 accumulators keep room for the products.
BIAS_LIMIT = 2.0**30


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Quantize the weights in the plan, per output channel.

    A channel whose bias would not fit into int32 with the product of the two scales (dead
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
        nodes = {node.name: node for node in graph.nodes()}
        for done, ((name, index), placement) in enumerate(plan.weights.items()):
            node = nodes[name]
            weight = graph.array(node.inputs[index])
            assert weight is not None and placement.spec.axis is not None
            axis = placement.spec.axis
            matrix = np.moveaxis(weight, axis, -1).reshape(-1, weight.shape[axis])
            codes, encoding, loss = solve(matrix, replace(placement.spec, axis=1), None)
            floor = _smallest_scale(graph, node)
            if floor is not None and (encoding.scale < floor).any():
                scale = np.maximum(encoding.scale, floor).astype(np.float32)
                encoding = replace(encoding, scale=scale)
                codes = quantize(matrix, encoding)
                loss = relative_loss(matrix, dequantize(codes, encoding))
            found[name, index] = QuantizedWeight(
                _back(codes, weight.shape, axis), _back_encoding(encoding, weight.ndim, axis), loss
            )
            report.details.append(f"{name}: relative error {loss:.3g}")
            context.progress("quantizing weights", done + 1, len(plan.weights))
        graph.facts.weights = found
        return report


def _smallest_scale(graph: Graph, node: Node) -> NDArray[np.float64] | None:
    """Least weight scale, float64 [1, N], with which the node's bias fits; None without bias."""
    bias = graph.array(node.inputs[2]) if len(node.inputs) > 2 else None
    encodings: dict[str, Encoding] = graph.facts.get("encodings")
    data = node.inputs[0]
    if bias is None or data is None:
        return None
    scale = float(encodings[data.name or ""].scale)
    return np.abs(bias.astype(np.float64))[None, :] / (scale * BIAS_LIMIT)


def _back(matrix: NDArray[Any], shape: tuple[int, ...], axis: int) -> NDArray[Any]:
    rest = tuple(n for i, n in enumerate(shape) if i != axis)
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(*rest, shape[axis]), -1, axis))


def _back_encoding(encoding: Encoding, ndim: int, axis: int) -> Encoding:
    shape = tuple(-1 if i == axis else 1 for i in range(ndim))
    block = tuple(1 if i == axis else 0 for i in range(ndim))
    return Encoding(
        encoding.dtype, encoding.scale.reshape(shape), encoding.zero_point.reshape(shape), block
    )
