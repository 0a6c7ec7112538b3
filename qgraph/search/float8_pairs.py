"""Products in float8 as targets read them that know it by Q/DQ, such as TensorRT, one at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value

_FLOAT8 = ir.DataType.FLOAT8E4M3FN


@dataclass(frozen=True, eq=False)
class Pair:
    """What turns one input of a product into codes.

    Attributes:
        scale: float32, one or one a channel.
        zero: float8, the same shape.
        axis: Along which scales differ.
        codes: Of a weight; None for activations.
    """

    scale: NDArray[np.float32]
    zero: NDArray[Any]
    axis: int
    codes: NDArray[Any] | None


Pairs = Mapping[int, Pair]
"""By index of the input."""


def find_pairs(whole: Graph) -> dict[str, Pairs]:
    """Return, by name of each product, what a model all in float8 has in front of it."""
    found: dict[str, Pairs] = {}
    for node in whole.nodes():
        own = {i: pair for i, v in enumerate(node.inputs) if (pair := _read(whole, v)) is not None}
        if own:
            found[node.name or ""] = own
    return found


def write_pairs(
    graph: Graph, node: Node, pairs: Pairs, made: dict[Value, Value] | None = None
) -> None:
    """Put a product behind codes.

    Args:
        graph: Where it is.
        node: The product.
        pairs: What turns its inputs into codes.
        made: Values that stand behind codes already, for readers further behind.
    """
    made = {} if made is None else made
    for index, pair in pairs.items():
        value = node.inputs[index]
        assert value is not None
        if pair.codes is None and value in made:
            graph.set_input(node, index, made[value])
            continue
        pieces = (
            [pair.scale, pair.zero] if pair.codes is None else [pair.codes, pair.scale, pair.zero]
        )
        constants = [graph.constant(f"{value.name}_float8", piece) for piece in pieces]
        if pair.codes is None:
            codes = graph.insert("QuantizeLinear", [value, *constants], before=node).outputs[0]
            codes.type = ir.TensorType(_FLOAT8)
            constants = [codes, *constants]
        attributes = {"axis": pair.axis} if pair.scale.ndim else {}
        floats = graph.insert(
            "DequantizeLinear", constants, before=node, attributes=attributes, like=value
        ).outputs[0]
        if pair.codes is None:
            made[value] = floats
        graph.set_input(node, index, floats)
    graph.drop_unread_initializers()


def _read(graph: Graph, value: Value | None) -> Pair | None:
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or len(producer.inputs) < 3:
        return None
    codes, scale, zero = map(graph.array, producer.inputs)
    tensor = graph.tensor(producer.inputs[2])
    if tensor is None or tensor.dtype != _FLOAT8 or scale is None or zero is None:
        return None
    axis = graph.attribute(producer, "axis", 1)
    return Pair(scale.astype(np.float32), zero, axis, codes)
