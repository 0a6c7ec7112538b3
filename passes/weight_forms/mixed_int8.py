"""LLM.int8(): outlier channels in float, the others in int8, their products added."""

from dataclasses import replace
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.encoding import SMALLEST_SCALE, Encoding
from qgraph.facts import QuantizedWeight
from qgraph.graph import Graph, Node, Value
from qgraph.passes.weight_forms._site import Site, in_type, site, too_old
from qgraph.passes.weight_forms.matmul_nbits import fit, uniform_blocks
from qgraph.passes.weight_forms.matmul_nbits import write as write_nbits
from qgraph.passes.weights.results import MixedInt8
from qgraph.pipeline import Reject

Kernel = Literal["dequantize", "nbits", "dynamic"]


def mixed_int8(
    graph: Graph,
    node: Node,
    weight: MixedInt8,
    *,
    kernel: Kernel = "dequantize",
    accuracy_level: int = 0,
) -> Value | Reject:
    """Write a weight as two products, of outlier channels and of the others.

    Before:
        y = MatMul(x, w)                                                        # w [K, N]

    After:
        a = MatMul(Gather <axis = -1> (x, outliers), rows)                      # in float
        b = MatMul(Gather <axis = -1> (x, regular), DequantizeLinear <axis = 1> (codes, scale))
        y = Add(a, b)

        Where all channels are of one kind, one product is left and x is not gathered.

    Numerics:
        `dequantize` and `nbits` compute with the weight of `dequantize()` and data in float.
        `dynamic` rounds each row of the data to int8, with its largest magnitude as 127, and
        multiplies integers, as the paper does; the codes of the data are stored as uint8 with 128
        for zero.

    Args:
        graph: Graph to add to; `node` stays.
        node: The MatMul.
        weight: The split weight.
        kernel: What computes the int8 part: DequantizeLinear and MatMul, MatMulNBits of 8 bits,
            or MatMulInteger.
        accuracy_level: Of MatMulNBits, see `matmul_nbits`.

    Returns:
        The value that replaces the MatMul's, or why there is none.

    Source:
        Dettmers et al. 2022, "LLM.int8()", arXiv 2208.07339, section 3.
    """
    rows = len(weight.regular) + len(weight.outliers)
    place = site(graph, node, weight, (rows, len(weight.scale)))
    if isinstance(place, str):
        return Reject(place)
    scale = in_type(weight.scale, place.float_type)
    if isinstance(scale, str):
        return Reject(scale)
    old = too_old(graph, "axes of ReduceMax as an input", 18)
    if old and kernel == "dynamic":
        return Reject(old)
    if graph.rank(place.x) == 1:
        return Reject("x has one axis")
    parts = []
    if len(weight.outliers):
        part = _columns(place, weight.outliers, "outliers", bool(len(weight.regular)))
        floats = place.constant("outlier_rows", weight.weight.astype(place.float_type))
        parts.append(place.insert("MatMul", part, floats, role="outlier_product"))
    if len(weight.regular) or not parts:
        part = _columns(place, weight.regular, "regular", bool(parts))
        if kernel == "nbits":
            parts.append(_nbits(replace(place, x=part), weight, accuracy_level))
        elif kernel == "dynamic":
            parts.append(_dynamic(place, part, weight))
        else:
            floats = place.insert(
                "DequantizeLinear",
                place.constant("codes", weight.codes),
                place.constant("scale", scale),
                role="weight",
                attributes={"axis": 1},
            )
            parts.append(place.insert("MatMul", part, floats, role="product"))
    if len(parts) == 1:
        return parts[0]
    return place.insert("Add", *parts, role="sum", like=node.outputs[0])


def _columns(place: Site, index: NDArray[np.int64], role: str, needed: bool) -> Value:
    """Return the channels `index` of x; x itself where there are no others."""
    if not needed:
        return place.x
    constant = place.constant(role, index)
    return place.insert("Gather", place.x, constant, role=role, attributes={"axis": -1})


def _nbits(place: Site, weight: MixedInt8, accuracy_level: int) -> Value:
    """Multiply by the int8 part as MatMulNBits."""
    scale = weight.scale[None, :]
    encoding = Encoding("int8", scale, np.zeros(scale.shape, np.int64), (0, 1))
    found = uniform_blocks(QuantizedWeight(weight.codes, encoding, 0.0))
    assert not isinstance(found, str)
    fitted = fit(found)
    assert not isinstance(fitted, str)
    out = write_nbits(place, fitted, accuracy_level)
    assert not isinstance(out, Reject)
    return out


def _dynamic(place: Site, part: Value, weight: MixedInt8) -> Value:
    """Round each row of the data to int8 and multiply integers; scales are applied in float32."""
    if place.dtype != ir.DataType.FLOAT:
        part = place.insert("Cast", part, role="data", attributes={"to": int(ir.DataType.FLOAT)})
    axes = place.constant("last_axis", np.array([-1], np.int64))
    largest = place.insert(
        "ReduceMax", place.insert("Abs", part, role="size"), axes, role="largest"
    )
    step = place.insert("Div", largest, _number(place, "top", 127.0), role="exact_step")
    # A row of zeros has no step of its own.
    step = place.insert("Max", step, _number(place, "least_step", SMALLEST_SCALE), role="step")
    steps = place.insert("Round", place.insert("Div", part, step, role="in_steps"), role="rounded")
    # onnxruntime's kernels for uint8 data are many times as fast as those for int8.
    shifted = place.insert("Add", steps, _number(place, "shift", 128.0), role="shifted")
    uint8 = {"to": int(ir.DataType.UINT8)}
    data = place.insert("Cast", shifted, role="data_codes", attributes=uint8)
    codes = place.constant("codes", weight.codes)
    middle = place.constant("data_zero_point", np.array(128, np.uint8))
    sums = place.insert("MatMulInteger", data, codes, middle, role="sums")
    floats = place.insert(
        "Cast", sums, role="sums_float", attributes={"to": int(ir.DataType.FLOAT)}
    )
    out = place.insert("Mul", floats, step, role="by_row")
    out = place.insert("Mul", out, place.constant("scale", weight.scale), role="by_column")
    return place.typed(out, "product")


def _number(place: Site, role: str, value: float) -> Value:
    return place.constant(role, np.array(value, np.float32))
