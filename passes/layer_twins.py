"""Puts beside each planned layer its quantized twin, fed with the same float values."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qgraph.encoding import INTEGERS, Encoding, dequantize
from qgraph.facts import QuantizedWeight
from qgraph.graph import Graph, Node, Value


@dataclass(frozen=True)
class Twins:
    """A float graph with twins.

    Attributes:
        graph: Copy of the float graph; the twins are read by nobody.
        results: By name of the layer's node, names of its result and of its twin's.
    """

    graph: Graph
    results: dict[str, tuple[str, str]]


def with_twins(graph: Graph, layers: list[Node]) -> Twins:
    """Return a copy of `graph` in which each layer has a twin.

    A twin reads the layer's float input through QuantizeLinear and DequantizeLinear with the
    planned encoding and has the weight that its codes stand for: what the exported graph computes
    of that input, but for the rounding of the int32 bias. So the difference between layer and twin
    is the layer's own error, not that of the layers before it.

    Args:
        graph: Float graph with plan, encodings and weights; it is not changed.
        layers: Conv, Gemm or MatMul nodes with a planned weight as input 1 and a planned input 0.
    """
    encodings: dict[str, Encoding] = graph.facts.get("encodings")
    weights: dict[tuple[str, int], QuantizedWeight] = graph.facts.get("weights")
    copy = Graph(graph.model.clone(), source=graph.source, sparse=graph.sparse)
    nodes = {node.name: node for node in copy.nodes()}
    pairs: dict[Value, Value] = {}
    shared: dict[int, Value] = {}
    results = {}
    for layer in layers:
        node = nodes[layer.name]
        data = node.inputs[0]
        assert data is not None
        if data not in pairs:
            pairs[data] = _through_codes(copy, data, encodings[data.name or ""], node)
        weight = weights[layer.name or "", 1]
        if id(weight) not in shared:
            array = dequantize(weight.codes, weight.encoding)
            shared[id(weight)] = copy.constant(f"{layer.name}_twin_weight", array)
        twin = copy.insert(
            node.op_type,
            [pairs[data], shared[id(weight)], *node.inputs[2:]],
            before=node,
            attributes=dict(node.attributes),
            name=f"{layer.name}_twin",
            like=node.outputs[0],
        )
        results[layer.name or ""] = (node.outputs[0].name or "", twin.outputs[0].name or "")
    return Twins(copy, results)


def _through_codes(graph: Graph, value: Value, encoding: Encoding, before: Node) -> Value:
    dtype = INTEGERS[encoding.dtype][2]
    scale = graph.constant(f"{value.name}_twin_scale", np.asarray(encoding.scale))
    zero = graph.constant(f"{value.name}_twin_zero", encoding.zero_point.astype(dtype))
    codes = graph.insert("QuantizeLinear", [value, scale, zero], before=before).outputs[0]
    codes.type = ir.TensorType(zero.dtype)  # type: ignore[arg-type]
    back = graph.insert("DequantizeLinear", [codes, scale, zero], before=before, like=value)
    return back.outputs[0]
