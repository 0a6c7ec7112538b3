"""Writes products of float8 codes in operators of the ONNX standard."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.encoding import FLOATS, dequantize, quantize
from qgraph.graph import Graph, Node, Value
from qgraph.lazy import derived
from qgraph.passes.fp8.groups import Group
from qgraph.passes.fp8.scales import DTYPE, encoding, power_of_two
from qgraph.passes.fusions._constants import constant, standing_in
from qgraph.passes.weights.loss import relative_loss


@dataclass(frozen=True, eq=False)
class Rounded:
    """A rounded weight.

    Attributes:
        value: The float value that stands for it, [K, N], times the scale of its input.
        scale: Of its codes.
        loss: Squared error relative to its squared size.
    """

    value: Value
    scale: float
    loss: float


def write_group(
    graph: Graph,
    group: Group,
    scale: float,
    weights: dict[tuple[Value, float], Rounded],
) -> dict[str, Rounded]:
    """Put products of codes in the place of a group's; return their weights by name.

    Args:
        graph: The graph.
        group: The products; what they read is divided by its scale.
        scale: That scale.
        weights: Those written so far, by the float weight and the scale of the input.
    """
    first = group.nodes[0]
    # Looked up now, as the weights are below: earlier groups may have replaced or divided them.
    data = first.inputs[0]
    assert data is not None
    codes = _cast(graph, first, data, ir.DataType.FLOAT8E4M3FN, "float8")
    back = _cast(graph, first, codes, ir.DataType.FLOAT, "float8_float")
    found: dict[str, Rounded] = {}
    for node in group.nodes:
        value, name = node.inputs[1], node.name or ""
        assert value is not None
        if (value, scale) not in weights:
            weights[value, scale] = _rounded(graph, value, scale)
        found[name] = weights[value, scale]
        inputs = [back, found[name].value]
        hint = f"{name}_float8"
        made = graph.insert("MatMul", inputs, before=node, like=node.outputs[0], name=hint)
        graph.replace(node.outputs[0], standing_in(made.outputs[0], node))
        graph.remove(node)
        made.name = name
    return found


def _cast(graph: Graph, before: Node, value: Value, to: ir.DataType, role: str) -> Value:
    made = graph.insert(
        "Cast",
        [value],
        before=before,
        attributes={"to": int(to)},
        name=f"{value.name}_{role}",
        like=value,
    )
    made.outputs[0].type = ir.TensorType(to)
    return made.outputs[0]


def _rounded(graph: Graph, value: Value, scale: float) -> Rounded:
    """Add a weight's codes [N, K] and what makes floats of them, times the input's scale."""
    matrix = constant(graph, value)
    assert matrix is not None
    taken = encoding(power_of_two(max(float(matrix.max()), -float(matrix.min()))))
    loss = relative_loss(matrix, dequantize(quantize(matrix, taken), taken))

    def codes_of(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(quantize(array.T, taken))

    # Products anywhere may share the weight.
    front = next(iter(graph.main))
    name = value.name or "weight"
    codes = derived(
        graph,
        f"{name}_float8",
        matrix,
        codes_of,
        dtype=FLOATS[DTYPE][1],
        shape=matrix.shape[::-1],
    )
    both = np.array(float(taken.scale) * scale, np.float32)
    inputs = [codes, graph.constant(f"{name}_float8_scale", both)]
    dequantized = graph.insert("DequantizeLinear", inputs, before=front, name=f"{name}_dequantized")
    made = graph.insert(
        "Transpose",
        [dequantized.outputs[0]],
        before=front,
        attributes={"perm": [1, 0]},
        like=value,
        name=f"{name}_transposed",
    )
    dequantized.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    dequantized.outputs[0].shape = ir.Shape(matrix.shape[::-1])
    return Rounded(made.outputs[0], float(taken.scale), loss)
