"""Puts scaled and quantized weights into the graph."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.facts import QuantizedWeight
from qgraph.graph import Graph, Node, Value
from qgraph.passes.weight_forms import FORMS, put
from qgraph.passes.weight_only.layers import Layer
from qgraph.passes.weight_only.scaling import MUL, NORMS, Place
from qgraph.passes.weight_only.sequential import Quantized
from qgraph.passes.weight_only.solve import Solution
from qgraph.pipeline import Reject
from qgraph.registry import load, pick


def fold_scales(graph: Graph, quantized: Quantized) -> dict[Layer, Solution]:
    """Divide the inputs of scaled layers, where their places are; return the solutions to write.

    A product's columns are divided in the scales of its codes, which changes no code.
    """
    solutions = dict(quantized.solutions)
    for group, place in quantized.places.items():
        scale = quantized.solutions[group.layers[0]].scale
        assert scale is not None
        if place.kind == "product" and not _in_codes(graph, solutions, place, scale):
            place = MUL
        if place.kind == "norm":
            _in_norm(graph, place, scale)
        elif place.kind == "mul":
            _in_mul(graph, group.layers, scale)
    return solutions


def write_weight(
    graph: Graph,
    layer: Layer,
    solution: Solution,
    forms: tuple[str, ...],
    options: dict[str, Any],
    *,
    folded: bool = False,
) -> str | None:
    """Put a quantized weight in the place of its layer's MatMuls.

    Args:
        graph: The graph.
        layer: The layer.
        solution: Its weight.
        forms: Names of forms, the one the target likes best first.
        options: By form, options for it.
        folded: Whether the layer's input or result was scaled.

    Returns:
        None, or why none of the forms takes it. The layer is as it was then; if `folded`, it has
        the quantized weight in float.
    """
    reasons = []
    for name in forms:
        write = partial(form(name), **options.get(name, {}))
        for node in layer.nodes:
            value = write(graph, node, solution.weight)
            if isinstance(value, Reject):
                reasons.append(value.reason)
                break
            put(graph, node, value)
        else:
            return None
    if folded:
        # Its input, or its result, is scaled by now: the float weight as it was would be wrong.
        dtype = _numpy_type(layer.weight)
        rounded = graph.constant(f"{layer.weight.name}_rounded", solution.stored().astype(dtype))
        for node in layer.nodes:
            graph.set_input(node, 1, rounded)
    return "; ".join(dict.fromkeys(reasons))


def form(name: str) -> Any:
    """Return a form by the name of its function."""
    known = {reference.partition(":")[2]: reference for reference in FORMS}
    return load(pick("weight form", name, known))


def _in_codes(
    graph: Graph, solutions: dict[Layer, Solution], place: Place, scale: NDArray[np.float32]
) -> bool:
    """Divide the columns of a product by the scale of the channels that they become."""
    assert place.layer is not None and place.columns is not None
    solution = solutions[place.layer]
    weight = solution.weight
    if not isinstance(weight, QuantizedWeight):
        return False
    by = np.ones(weight.codes.shape[-1], np.float32)
    by[place.columns] = scale
    divided = (weight.encoding.scale / by).astype(np.float32)
    if not np.isfinite(divided).all() or (divided == 0).any():
        return False
    encoding = replace(weight.encoding, scale=divided)
    solutions[place.layer] = replace(solution, weight=replace(weight, encoding=encoding))
    product = place.layer.node.outputs[0]
    if place.value is not product:
        _divide(graph, graph.readers(product)[0], by)
    return True


def _in_norm(graph: Graph, place: Place, scale: NDArray[np.float32]) -> None:
    assert place.node is not None
    if place.node.op_type in NORMS:
        for index in range(1, len(place.node.inputs)):
            _divide_input(graph, place.node, index, scale)
    else:
        _divide(graph, place.node, scale)


def _in_mul(graph: Graph, layers: list[Layer], scale: NDArray[np.float32]) -> None:
    """Put a Mul by 1 / scale between the input and the layers."""
    first, data = layers[0].node, layers[0].data
    dtype = _numpy_type(data)
    factor = graph.constant(f"{data.name}_inverse_scale", (1 / scale).astype(dtype))
    made = graph.insert("Mul", [data, factor], before=first, like=data, name=f"{first.name}_scale")
    for layer in layers:
        graph.set_input(layer.node, 0, made.outputs[0])


def _divide(graph: Graph, node: Node, by: NDArray[np.float32]) -> None:
    """Divide the one constant operand of an Add or Mul."""
    index = next(i for i, v in enumerate(node.inputs) if graph.is_constant(v))
    _divide_input(graph, node, index, by)


def _divide_input(graph: Graph, node: Node, index: int, by: NDArray[np.float32]) -> None:
    value = node.inputs[index]
    array = graph.array(value)
    if value is None or array is None:
        return
    # Others may read the same constant.
    divided = (array.astype(np.float32) / by).astype(array.dtype)
    graph.set_input(node, index, graph.constant(f"{value.name}_scaled", divided))


def _numpy_type(value: Value) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
    return dtype
