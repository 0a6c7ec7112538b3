"""Writes what a unit gets wrong in another precision into its segment, for the sweep to carry on.

The engine that carries errors computes in float32 and has kernels for hardly anything else; so each probe
computes in operators of the standard what the precision would.
"""

from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.encoding import FLOATS, Encoding, Spec, dequantize, quantize
from qgraph.encoding import INTEGERS as DTYPES
from qgraph.graph import Graph, Node, Value
from qgraph.passes.dynamic_int8 import WEIGHT
from qgraph.passes.fp8.scales import encoding as float8
from qgraph.passes.fp8.scales import power_of_two
from qgraph.passes.half_rewrite import rewrite
from qgraph.passes.half_types import slots
from qgraph.passes.weights.rtn import round_to_nearest
from qgraph.search.emulate import emulate
from qgraph.search.float8_pairs import Pairs, write_pairs
from qgraph.search.prepared import Prepared
from qgraph.search.units import Unit
from qgraph.search.wide import Encodings
from qgraph.target import WeightOnlyRules

Kind = str
"""Where an error enters. `read`: the unit computes in integers, of codes. `written`: its result becomes
codes; readers in integers have that error in their own, and in their corrected bias (`w8a16-written`: codes of
16 bits). Else the precision of the unit, and for half precisions of what follows it in its segment."""
Probe = Callable[[Prepared, Unit, Graph], bool]
"""Writes the error of a unit into a copy of its segment; False where it can't make it."""
READ, WRITTEN, WIDE_WRITTEN = "read", "written", "w8a16-written"
Floats = NDArray[np.float32]
# Since this opset ReduceMin and ReduceMax have their axes as an input.
_AXES_AS_INPUT = 18


def half(dtype: ir.DataType, names: Collection[str]) -> Probe:
    """Return what computes a segment in half precision.

    Args:
        dtype: FLOAT16 or BFLOAT16.
        names: Names of the results that may be in it.
    """

    def probe(prepared: Prepared, unit: Unit, part: Graph) -> bool:
        found = {}
        for node in part.nodes():
            if not any(out.name in names for out in node.outputs):
                continue
            able = slots(part, node, dtype)
            if not isinstance(able, str) and able:
                found[node] = able
        rewrite(part, found, dtype)
        emulate(part)
        return bool(found)

    return probe


def weight(bits: int, group: int, rules: WeightOnlyRules, names: Collection[str]) -> Probe:
    """Return what rounds the weight of a linear layer to nearest.

    Args:
        bits: Of its codes.
        group: Rows that share a scale; 0 for whole columns.
        rules: What the target executes.
        names: The layers.
    """
    kind = "int" if rules.symmetric else "uint"
    spec = Spec(f"{kind}{bits}", rules.symmetric, axis=0 if group else 1, block=group)

    def rounded(matrix: Floats) -> Floats:
        codes, encoding, _ = round_to_nearest(matrix, spec, signed=rules.negative_scales)
        return dequantize(codes, encoding)

    def probe(prepared: Prepared, unit: Unit, part: Graph) -> bool:
        return unit.name in names and _round_matrix(part, unit.name, rounded)

    return probe


def cast_to_float8(scales: Mapping[str, float]) -> Probe:
    """Return what rounds both operands of a product to float8e4m3fn, as the pass `fp8` does.

    Args:
        scales: By name of the product, what its data is divided by.
    """

    def rounded(matrix: Floats) -> Floats:
        largest = float(np.abs(matrix).max(initial=0.0))
        taken = float8(power_of_two(largest))
        return dequantize(quantize(matrix, taken), taken)

    def probe(prepared: Prepared, unit: Unit, part: Graph) -> bool:
        if unit.name not in scales or not _round_matrix(part, unit.name, rounded):
            return False
        own = _node(part, unit.name)
        source = own.inputs[0]
        assert source is not None
        part.set_input(own, 0, _pair(part, source, float8(scales[unit.name]), own))
        return True

    return probe


def dynamic(names: Collection[str]) -> Probe:
    """Return what rounds the data of a linear layer to uint8 at the scale of each sample, and its weight.

    Args:
        names: The layers.

    Source:
        https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html, for each row of the first axis:
        samples are carried on in batches, and in the model each has a scale of its own.
    """

    def rounded(matrix: Floats) -> Floats:
        codes, encoding, _ = round_to_nearest(matrix, WEIGHT)
        return dequantize(codes, encoding)

    def probe(prepared: Prepared, unit: Unit, part: Graph) -> bool:
        if unit.name not in names or part.opset < _AXES_AS_INPUT:
            return False
        own = _node(part, unit.name)
        source = own.inputs[0]
        if source is None or source.shape is None:
            return False
        if not _round_matrix(part, unit.name, rounded):
            return False
        behind = np.arange(1, source.shape.rank(), dtype=np.int64)
        part.set_input(own, 0, _rounded_at_run_time(part, source, behind, own))
        return True

    return probe


def _rounded_at_run_time(
    part: Graph, value: Value, behind: NDArray[np.int64], before: Node
) -> Value:
    """Round a value as DynamicQuantizeLinear does, the range taken over the axes behind the first."""

    def add(op: str, *inputs: Value) -> Value:
        return part.insert(op, inputs, before=before).outputs[0]

    zero, steps = (part.constant(f"{value.name}_{n}", np.array(n, np.float32)) for n in (0, 255))
    axes = part.constant("behind_samples", behind)
    ends = []
    for op, nearer in (("ReduceMin", "Min"), ("ReduceMax", "Max")):
        ends.append(add(nearer, add(op, value, axes), zero))
    low, high = ends
    tiny = part.constant("least_scale", np.array(np.finfo(np.float32).tiny))
    scale = add("Max", add("Div", add("Sub", high, low), steps), tiny)
    shift = add("Round", add("Div", low, scale))
    codes = add("Round", add("Div", value, scale))
    top = add("Add", shift, steps)
    return add("Mul", add("Min", add("Max", codes, shift), top), scale)


def float8_pairs(pairs: Mapping[str, Pairs]) -> Probe:
    """Return what puts a product behind Q/DQ in float8.

    Args:
        pairs: By name of the product, its Q/DQ.
    """

    def probe(prepared: Prepared, unit: Unit, part: Graph) -> bool:
        if unit.name not in pairs:
            return False
        write_pairs(part, _node(part, unit.name), pairs[unit.name])
        return True

    return probe


def _node(part: Graph, name: str) -> Node:
    return next(node for node in part.nodes() if node.name == name)


def _round_matrix(part: Graph, name: str, rounded: Callable[[Floats], Floats]) -> bool:
    """Round the matrix [K, N] of a MatMul or Gemm; False where it has none."""
    own = _node(part, name)
    array = part.array(own.inputs[1]) if own.op_type in ("MatMul", "Gemm") else None
    if array is None or array.ndim != 2:
        return False
    turned = own.op_type == "Gemm" and bool(part.attribute(own, "transB", 0))
    found = rounded(array.T if turned else array)
    part.set_input(own, 1, part.constant("rounded", found.T.copy() if turned else found))
    part.drop_unread_initializers()
    return True


def _code_weights(prepared: Prepared, name: str, part: Graph, own: Node) -> None:
    for (layer, index), weight in prepared.weights.items():
        if layer == name:
            array = dequantize(weight.codes, weight.encoding)
            part.set_input(own, index, part.constant(f"coded_{index}", array))


def reads(encodings: Encodings | None = None) -> Probe:
    """Return what gives a unit the inputs, weights and bias that integers have.

    Args:
        encodings: Of its inputs, by value name; None for those in 8 bits.
    """

    def probe(prepared: Prepared, unit: Unit, part: Graph) -> bool:
        if not unit.reads:
            return False
        known = prepared.encodings if encodings is None else encodings
        inner = {node.name: node for node in part.nodes()}
        own = inner[unit.node.name]
        _code_weights(prepared, unit.name, part, own)
        bias = prepared.biases.get(unit.name)
        if bias is not None and bias.holder in inner:
            part.set_input(inner[bias.holder], bias.index, part.constant("coded_bias", bias.array))
        for index, value in unit.reads.items():
            source = own.inputs[index]
            assert source is not None
            part.set_input(own, index, _pair(part, source, known[value.name or ""], own))
        part.drop_unread_initializers()
        return True

    return probe


def writes(encodings: Encodings | None = None) -> Probe:
    """Return what turns a unit's result into codes and back.

    Args:
        encodings: By value name; None for those in 8 bits.
    """

    def probe(prepared: Prepared, unit: Unit, part: Graph) -> bool:
        known = prepared.encodings if encodings is None else encodings
        if unit.writes is None or unit.writes.name not in known:
            return False
        inner = {node.name: node for node in part.nodes()}
        _code_result(part, inner[unit.nodes[-1].name], known[unit.writes.name or ""])
        return True

    return probe


def _code_result(part: Graph, last: Node, encoding: Encoding) -> None:
    result = last.outputs[0]
    uses = list(result.uses())
    following = next(iter(node for node in part.nodes() if any(u.node is node for u in uses)), None)
    outside = [i for i, value in enumerate(part.main.outputs) if value is result]
    pair = _pair(part, result, encoding, following)
    for use in uses:
        part.set_input(use.node, use.idx, pair)
    name = result.name
    for index in outside:
        result.name, pair.name = f"{name}_plain", name
        part.main.outputs[index] = pair


def _pair(part: Graph, value: Value, encoding: Encoding, before: Node | None) -> Value:
    """Quantize a value and back, in front of a node or at the end."""
    dtype = DTYPES[encoding.dtype][2] if encoding.dtype in DTYPES else FLOATS[encoding.dtype][1]
    scale = part.constant(f"{value.name}_scale", encoding.scale)
    zero = part.constant(f"{value.name}_zero", encoding.zero_point.astype(dtype))
    after = None if before is not None else list(part.main)[-1]
    q = part.insert("QuantizeLinear", [value, scale, zero], before=before, after=after)
    q.outputs[0].type = ir.TensorType(zero.dtype)  # type: ignore[arg-type]
    after = None if before is not None else q
    dq = part.insert(
        "DequantizeLinear", [q.outputs[0], scale, zero], before=before, after=after, like=value
    )
    return dq.outputs[0]


INTEGERS: Mapping[Kind, Probe] = {READ: reads(), WRITTEN: writes()}
