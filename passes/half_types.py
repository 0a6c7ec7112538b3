"""Which inputs and outputs of a node can be float16 or bfloat16: questions to ONNX's schemas."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import onnx
import onnx_ir as ir

from qgraph.graph import Graph, Node, Value

# Operators that stay in float32 whatever their schema allows.
KEPT = {
    "RandomNormal": "its random numbers depend on their type",
    "RandomNormalLike": "its random numbers depend on their type",
    "RandomUniform": "its random numbers depend on their type",
    "RandomUniformLike": "its random numbers depend on their type",
    "Bernoulli": "its random numbers depend on their type",
    "Multinomial": "its random numbers depend on their type",
    "BitCast": "it reads the bits of its input",
    "HannWindow": "its output type is an attribute",
    "HammingWindow": "its output type is an attribute",
    "BlackmanWindow": "its output type is an attribute",
    "MelWeightMatrix": "its output type is an attribute",
    "MeanVarianceNormalization": "ONNX defines it by a function with float32 constants",
}

# Operators of quantized models. Engines fuse them with their neighbours into integer kernels,
# which take float32 scales and results.
QUANTIZED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
)

# Operators outside the standard that compute in their data's type, with every input and output
# that has it. Their scales and float zero points are rounded with it; codes stay as they are.
# Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
CONTRIBUTED = {
    ("com.microsoft", "MatMulNBits"): ((True, False, True, True, False, True), (True,)),
    ("com.microsoft", "GroupQueryAttention"): (
        (True, True, True, True, True, False, False, True, True, False),
        (True, True, True),
    ),
    ("com.microsoft", "MultiHeadAttention"): (
        (True, True, True, True, False, True, True, True, False),
        (True, True, True),
    ),
    ("com.microsoft", "SkipLayerNormalization"): ((True,), (True, False, False, True)),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): ((True,), (True, False, False, True)),
}

# Operators that copy elements and compute nothing: their type matters to their neighbours only.
MOVEMENT = frozenset(
    {
        "Cast",
        "Concat",
        "ConstantOfShape",
        "DepthToSpace",
        "Expand",
        "EyeLike",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Pad",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


@dataclass(frozen=True)
class Slots:
    """Positions of a node's float32 inputs and outputs that its operator also takes in half.

    Attributes:
        inputs: Indices of inputs.
        outputs: Indices of outputs.
    """

    inputs: frozenset[int]
    outputs: frozenset[int]

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.inputs or self.outputs)


def slots(graph: Graph, node: Node, half: ir.DataType, codes: bool = False) -> Slots | str:
    """Return what of `node` can be in `half`, or the reason why none of it can.

    Nodes without any float32 input or output have empty slots and no reason.

    Args:
        graph: Where the node is.
        node: The node.
        half: FLOAT16 or BFLOAT16.
        codes: Whether integer kernels take scales and give results in it.
    """
    values = [*node.inputs, *node.outputs]
    floats = [v for v in values if v is not None and v.dtype == ir.DataType.FLOAT]
    if not floats and graph.is_standard(node) and all(v is None or v.dtype for v in values):
        return Slots(frozenset(), frozenset())
    contributed = CONTRIBUTED.get((node.domain, node.op_type))
    if not graph.is_standard(node) and contributed is None:
        return f"custom operator of domain {node.domain!r}"
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in _attrs(node)):
        return "its bodies stay in float32; values are cast at their border"
    integers = node.op_type in QUANTIZED and not in_float8(node)
    if codes and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        integers = False
    if integers and not dequantizes_weight(graph, node):
        return "part of a quantized model"
    if node.op_type in KEPT:
        return KEPT[node.op_type]
    if any(v is not None and v.name and v.dtype is None for v in values):
        return "the type of one of its values is unknown"
    if any(v is not None and v.name and not isinstance(v.type, ir.TensorType) for v in values):
        return "it works on sequences or optional values"
    found = contributed or _allowed(node.op_type, graph.opset, half.name.lower())
    if found is None:
        return f"onnx {onnx.__version__} has no {node.op_type} for opset {graph.opset}"
    formal_inputs, formal_outputs = found
    result = Slots(
        _convertible(node.inputs, formal_inputs), _convertible(node.outputs, formal_outputs)
    )
    if not result:
        return f"{node.op_type} takes no {half.name.lower()} at opset {graph.opset}"
    return result


def in_quantized_unit(graph: Graph, node: Node) -> bool:
    """Whether an engine may run `node` in integers, between DequantizeLinear and QuantizeLinear.

    Codes of weights alone make no integer kernel: the data must be codes, too. Those in float8 make
    none either: their kernels take scales and give results in half.
    """
    before = (v.producer() for v in node.inputs if v is not None)
    after = (use.node for out in node.outputs for use in out.uses())
    return any(
        n is not None
        and graph.is_standard(n, "DequantizeLinear")
        and not graph.is_constant(n.inputs[0])
        and not in_float8(n)
        for n in before
    ) or any(graph.is_standard(n, "QuantizeLinear") and not in_float8(n) for n in after)


def in_float8(node: Node) -> bool:
    """Whether a QuantizeLinear or DequantizeLinear makes or reads codes in 8-bit floating point."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return False
    codes = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    dtype = None if codes is None else codes.dtype
    return dtype in (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)


def dequantizes_weight(graph: Graph, node: Node) -> bool:
    """Whether `node` makes a float weight of constant codes, for kernels that compute in float."""
    return (
        graph.is_standard(node, "DequantizeLinear")
        and graph.is_constant(node.inputs[0])
        and not any(in_quantized_unit(graph, reader) for reader in graph.readers(node.outputs[0]))
    )


def _attrs(node: Node) -> list[ir.Attr]:
    return list(node.attributes.values())


def _convertible(values: Sequence[Value | None], formal: tuple[bool, ...]) -> frozenset[int]:
    return frozenset(
        index
        for index, value in enumerate(values)
        if value is not None
        and value.dtype == ir.DataType.FLOAT
        # The last formal parameter repeats where it is variadic.
        and formal[min(index, len(formal) - 1)]
    )


@cache
def _allowed(
    op_type: str, opset: int, half: str
) -> tuple[tuple[bool, ...], tuple[bool, ...]] | None:
    """For each formal input and output, whether its schema takes `half`; None without a schema."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    types = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    wanted = f"tensor({half})"

    def takes(parameter: onnx.defs.OpSchema.FormalParameter) -> bool:
        return wanted in types.get(parameter.type_str, [parameter.type_str])

    return tuple(map(takes, schema.inputs)), tuple(map(takes, schema.outputs))
