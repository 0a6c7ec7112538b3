"""Which groups of DequantizeLinear, operator and QuantizeLinear onnxruntime turns into one kernel.

The conditions are those of onnxruntime's CPU provider, NodeGroupSelector and its subclasses
(onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc, version 1.31).
tests/test_lint_onnxruntime.py holds them against what onnxruntime itself makes of models.
"""

from dataclasses import dataclass

import numpy as np

from qgraph.graph import Node, Value
from qgraph.lint.view import View
from qgraph.passes.plan import clip_bounds
from qgraph.passes.rewrites._bounds import Bounds

# By operator, what its group must be like; operators without one run in float.
KINDS: dict[str, str] = {
    **dict.fromkeys(
        (
            "Expand",
            "Flatten",
            "Gather",
            "GatherElements",
            "Reshape",
            "Slice",
            "Squeeze",
            "Tile",
            "Transpose",
            "Unsqueeze",
        ),
        "moves",
    ),
    "Resize": "moves 8 bits",
    **dict.fromkeys(("MaxPool", "ReduceMax", "ReduceMin"), "orders"),
    "Split": "splits",
    "ArgMax": "reads",
    **dict.fromkeys(
        ("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax"), "one operand"
    ),
    **dict.fromkeys(("Add", "Mul", "Concat"), "all operands"),
    "Where": "branches",
    "Conv": "convolution",
    "MatMul": "product",
    "Gemm": "gemm",
}
_LAYOUT = ("moves", "moves 8 bits", "orders", "splits", "reads")
# Float weights and biases of these are quantized by onnxruntime itself.
_OWN_WEIGHTS = ("convolution", "gemm")
_SIXTEEN_BITS = ("int16", "uint16")
_ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True)
class _Behind:
    """What stands behind a node: its QuantizeLinear nodes, or why there is none in reach."""

    quantizers: tuple[Node, ...]
    reason: str = ""


def sandwiched(view: View, node: Node) -> str | None:
    """Check of a rule: an operator without an integer kernel, placed as if it had one."""
    if not view.graph.is_standard(node) or view.is_quantizer(node) or node.op_type in KINDS:
        return None
    if node.op_type in _ACTIVATIONS or not view.reads_codes(node):
        return None
    outs = [out for out in node.outputs if list(out.uses())]
    if not outs or not all(view.quantizers_behind(out) for out in outs):
        return None
    return f"{node.op_type} has no integer kernel"


def group_refusal(view: View, node: Node) -> str | None:
    """Check of a rule: say why the Q/DQ around a node are not fused into it."""
    kind = KINDS.get(node.op_type)
    if kind is None or not view.graph.is_standard(node) or not view.reads_codes(node):
        return None
    behind = _behind(view, node)
    if kind in _LAYOUT:
        # Behind a DequantizeLinear alone it is a float operator like any other.
        return _layout(view, node, kind, behind) if behind.quantizers else None
    return _inputs(view, node, kind) or _types(view, node, kind, behind) or _result(kind, behind)


def blocked_weight_refusal(view: View, node: Node) -> str | None:
    """Check of a rule: say why a blocked or 4-bit weight does not end in MatMulNBits."""
    weight = view.dequantizer(node, 1)
    if weight is None or not view.is_weight(weight) or not view.graph.is_standard(node):
        return None
    blocked = bool(view.graph.attribute(weight, "block_size", 0))
    if not blocked and view.code_type(weight) not in ("int4", "uint4"):
        return None
    if view.dequantizer(node, 0) is not None:
        return "its activations are quantized too"
    return _blocked(view, node, weight, blocked)


def _blocked(view: View, node: Node, weight: Node, blocked: bool) -> str | None:
    found = view.parameters(weight)
    if isinstance(found, str):
        return found
    tensor = view.graph.tensor(view.input(weight, 0))
    if tensor is None or len(tensor.shape) != 2:
        return "its weight does not have two axes"
    if view.graph.only_reader(weight.outputs[0]) is None:
        return "its DequantizeLinear has a second reader"
    if blocked and (found.axis != 0 or found.block < 16 or found.block & (found.block - 1)):
        return f"blocks of {found.block} along axis {found.axis}, not a power of two >= 16 along 0"
    if not blocked and found.axis not in (None, 1):
        return "its scales do not run along the columns"
    if found.dtype not in ("int4", "uint4", "int8", "uint8"):
        return f"its codes are {found.dtype}"
    if view.quantizers_behind(node.outputs[0]):
        return "a QuantizeLinear reads its result"
    return None


def _behind(view: View, node: Node) -> _Behind:
    """Look for QuantizeLinear behind a node, through a Relu or Clip that the codes make needless."""
    used = [out for out in node.outputs if out.name and (list(out.uses()) or out.is_graph_output())]
    found: list[Node] = []
    for out in used:
        reason = _reader_reason(view, out)
        if not reason:
            found += view.quantizers_behind(out)
            continue
        inner = _through_activation(view, out) if len(used) == 1 else reason
        if isinstance(inner, str):
            return _Behind(tuple(view.quantizers_behind(out)), inner or reason)
        found.append(inner)
    return _Behind(tuple(found), "" if found else "nothing reads its result")


def _reader_reason(view: View, value: Value) -> str:
    readers = view.graph.readers(value)
    if value.is_graph_output():
        return "its result is a graph output"
    quantizers = view.quantizers_behind(value)
    if not quantizers:
        return "its result has no QuantizeLinear"
    return "" if len(readers) == 1 else "its result has a second reader beside the QuantizeLinear"


def _through_activation(view: View, value: Value) -> Node | str:
    """Return the QuantizeLinear behind a Relu or Clip, or why it is not in reach."""
    reader = view.graph.only_reader(value)
    if reader is None or not view.graph.is_standard(reader, *_ACTIVATIONS):
        return ""
    limits = clip_bounds(view.graph, reader)
    reason = _reader_reason(view, reader.outputs[0])
    if reason or limits is None:
        return reason and f"{reader.op_type} follows, and {reason}"
    quantizer = view.quantizers_behind(reader.outputs[0])[0]
    found = view.parameters(quantizer)
    if isinstance(found, str):
        return f"of the QuantizeLinear behind it, {found}"
    codes = Bounds.of(found)
    slack = found.scale.astype(np.float64) / 2
    if (codes.low < limits[0] - slack).any() or (codes.high > limits[1] + slack).any():
        return f"the {reader.op_type} behind it cuts off values that the codes can represent"
    return quantizer


def _layout(view: View, node: Node, kind: str, behind: _Behind) -> str | None:
    source = view.dequantizer(node, 0)
    if source is None:
        return "its data has no DequantizeLinear"
    if kind == "reads":
        return None
    if behind.reason:
        return behind.reason
    before = view.parameters(source)
    for quantizer in behind.quantizers:
        after = view.parameters(quantizer)
        if isinstance(before, str) or isinstance(after, str):
            return before if isinstance(before, str) else str(after)
        if before.axis is not None or after.axis is not None:
            return "it has a scale a channel"
        if (before.dtype, before.scale, before.zero_point) != (
            after.dtype,
            after.scale,
            after.zero_point,
        ):
            return "what comes in and what goes out have other parameters"
        if kind in ("moves 8 bits", "orders") and before.dtype in _SIXTEEN_BITS:
            return f"its codes are {before.dtype}"
        if kind == "orders" and not (after.scale > 0).all():
            return "its scale is not positive"
    return None


def _inputs(view: View, node: Node, kind: str) -> str | None:
    """Say which input has no DequantizeLinear."""
    for index, value in enumerate(node.inputs):
        if value is None or (kind == "branches" and index == 0):
            continue
        source = view.dequantizer(node, index)
        if source is None:
            if kind in _OWN_WEIGHTS and index and view.graph.is_constant(value):
                continue
            return f"input {index} has no DequantizeLinear"
        if source.outputs[0].is_graph_output():
            return f"the DequantizeLinear of input {index} is a graph output"
    return None


def _types(view: View, node: Node, kind: str, behind: _Behind) -> str | None:
    sources = [view.dequantizer(node, index) for index in range(len(node.inputs))]
    types = [view.code_type(source) if source is not None else "" for source in sources]
    data = [name for name in types if name]
    results = [view.code_type(quantizer) for quantizer in behind.quantizers]
    sixteen = [name for name in (*data, *results) if name in _SIXTEEN_BITS]
    if sixteen:
        return f"its codes are {sixteen[0]}"
    if any(name in ("int4", "uint4") for name in data):
        return "its codes have 4 bits"
    if kind in ("convolution", "product", "gemm"):
        return _product_types(view, node, kind, types, results)
    wanted = {*data, *results}
    return None if len(wanted) <= 1 else f"its codes are {' and '.join(sorted(wanted))}"


def _product_types(
    view: View, node: Node, kind: str, types: list[str], results: list[str]
) -> str | None:
    if types[0] == "int8" and types[1] not in ("int8", ""):
        return f"its activations are int8, its weight {types[1]}"
    if results and results[0] != types[0]:
        return f"its codes are {types[0]}, its result's {results[0]}"
    if kind != "product" and len(types) > 2 and types[2] not in ("", "int32"):
        return f"its bias is {types[2]}, not int32"
    if kind == "gemm" and len(types) > 2 and types[2]:
        beta = view.graph.attribute(node, "beta", 1.0)
        if beta != 1.0:
            return f"Gemm with beta = {beta:g}"
    return None


def _result(kind: str, behind: _Behind) -> str | None:
    if kind in ("product", "gemm") and not behind.quantizers:
        return None  # there are kernels that hand out floats
    return behind.reason or None
