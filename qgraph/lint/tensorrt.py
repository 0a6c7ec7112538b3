"""What TensorRT's ONNX parser and builder do not take.

TensorRT-RTX, which builds engines without a GPU, was asked about each: "tried" below.
"""

from collections.abc import Iterable

from qgraph.graph import Node
from qgraph.lint.device import nonzero_zero_point
from qgraph.lint.parser import ask
from qgraph.lint.rule import Rule, RuleSet
from qgraph.lint.tensorrt_ops import (
    LIMITS,
    NO_TYPE,
    PLUGINS,
    limited,
    slice_axes,
    unsupported,
    vector_product,
    without_plugins,
    written_out,
)
from qgraph.lint.view import View
from qgraph.passes.rewrites.expand_functions import EXPANDED
from qgraph.passes.rewrites.integer_to_qdq import FORMS as INTEGER_FORMS
from qgraph.passes.rewrites.qlinear_to_qdq import MICROSOFT_FORMS, ONNX_FORMS

_TYPES = (
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/"
    "work-quantized-types.html"
)
_OPERATORS = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md"
_TRIED = "tried: TensorRT-RTX 1.7.1.116"
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_CODES = ("int8", "int4", "float8e4m3fn", "float4e2m1")
# What gives weight-only products their fast kernels; others build, too.
_BLOCKS = (64, 128)
_TO_SYMMETRIC = ("dequantize_early", "symmetric_weights", "symmetric_activations")


def _integer_form(view: View, node: Node) -> str | None:
    forms = {**INTEGER_FORMS, **ONNX_FORMS} if view.graph.is_standard(node) else MICROSOFT_FORMS
    known = node.op_type in forms or node.op_type == "MatMulIntegerToFloat"
    return f"{node.op_type} computes with codes" if known else None


def _nbits(view: View, node: Node) -> str | None:
    return "" if node.domain == "com.microsoft" else None


def _int32_codes(view: View, node: Node) -> str | None:
    return "codes are int32" if view.code_type(node) == "int32" else None


def _unsigned(view: View, node: Node) -> str | None:
    found = view.code_type(node)
    return f"codes are {found}" if found in ("uint8", "uint4") else None


def _other_codes(view: View, node: Node) -> str | None:
    found = view.code_type(node)
    return f"codes are {found}" if found and found not in _CODES else None


def _scale(view: View, node: Node) -> str | None:
    scale = view.graph.array(view.input(node, 1))
    return None if scale is None or (scale > 0).all() else "a scale is 0 or negative"


def _channel_activation(view: View, node: Node) -> str | None:
    if view.graph.is_constant(view.input(node, 0)):
        return None
    found = view.parameters(node)
    if isinstance(found, str) or found.axis is None:
        return None
    return f"{found.scale.size} scales along axis {found.axis}"


def _ragged(view: View, node: Node) -> str | None:
    blocks = _blocks(view, node)
    if blocks is None:
        return None
    length, block, _ = blocks
    return f"blocks of {block} along an axis of {length}" if length % block else None


def _block_length(view: View, node: Node) -> str | None:
    """Int4 weights by blocks that the weight-only kernels are not made for."""
    if view.code_type(node) != "int4" or not view.is_weight(node):
        return None
    blocks = _blocks(view, node)
    if blocks is None:
        return "int4 without blocks"
    _, block, depth = blocks
    if not depth:
        return "its blocks do not lie along K"
    return f"blocks of {block}" if block not in _BLOCKS else None


def _blocks(view: View, node: Node) -> tuple[int, int, bool] | None:
    """Return the blocked axis's length, the block's, and whether the axis is K of a product."""
    found = view.parameters(node)
    tensor = view.graph.tensor(view.input(node, 0))
    if isinstance(found, str) or tensor is None or not found.block or found.axis is None:
        return None
    rank = len(tensor.shape)
    if not -rank <= found.axis < rank:
        return None
    axis = found.axis % rank
    depth = all(
        axis == (rank - 1 if view.graph.attribute(reader, "transB", 0) else rank - 2)
        for reader in view.graph.readers(node.outputs[0])
        if reader.op_type in ("MatMul", "Gemm")
    )
    return int(tensor.shape.numpy()[axis]), found.block, depth


def _weight_alone(view: View, node: Node) -> str | None:
    """An int8 weight whose data are float: the weight is dequantized and the product is float."""
    weight = view.dequantizer(node, 1)
    if weight is None or not view.is_weight(weight) or view.code_type(weight) != "int8":
        return None
    return None if view.dequantizer(node, 0) is not None else "its data have no DequantizeLinear"


def _element_types(view: View) -> Iterable[tuple[str, str]]:
    values = [*view.graph.inputs, *view.graph.outputs]
    values += [out for node in view.graph.walk() for out in node.outputs]
    seen: set[str] = set()
    for value in values:
        name = value.name or ""
        if value.dtype is not None and value.dtype.name in NO_TYPE and name not in seen:
            seen.add(name)
            yield name, f"a tensor of {value.dtype.name.lower()}"


def _doubles(view: View) -> Iterable[tuple[str, str]]:
    for value in (*view.graph.inputs, *view.graph.outputs):
        if value.dtype is not None and value.dtype.name == "DOUBLE":
            yield value.name or "", "float64"


RULES = RuleSet(
    "tensorrt",
    (
        Rule(
            "element-type",
            "refused",
            "there is no such element type",
            f"{_OPERATORS}; {_TRIED}",
            scan=_element_types,
        ),
        Rule(
            "float64",
            "falls back",
            "float64 is computed in float32",
            _OPERATORS,
            scan=_doubles,
        ),
        Rule(
            "matmul-nbits",
            "refused",
            "MatMulNBits needs a plugin that is not there, and float16",
            _TRIED,
            check=_nbits,
            ops=frozenset({"MatMulNBits"}),
            fix=("unpack_matmul_nbits", "symmetric_weights"),
        ),
        Rule(
            "integer-operator",
            "refused",
            "operators on codes are not imported: Q/DQ around float operators are",
            f"{_OPERATORS}; {_TRIED}",
            check=_integer_form,
            ops=frozenset({*INTEGER_FORMS, *ONNX_FORMS, *MICROSOFT_FORMS, "MatMulIntegerToFloat"}),
            fix=("integer_to_qdq", "qlinear_to_qdq", "float_bias", *_TO_SYMMETRIC),
        ),
        Rule(
            "written-out",
            "refused",
            "there is no kernel for it as one operator",
            _TRIED,
            check=written_out,
            ops=frozenset(EXPANDED),
            fix=("expand_functions",),
        ),
        Rule(
            "slice-axes",
            "refused",
            "a Slice of fewer axes than the tensor has needs to name them",
            _TRIED,
            check=slice_axes,
            ops=frozenset({"Slice"}),
            fix=("slice_axes",),
        ),
        Rule(
            "vector-product",
            "refused",
            "a vector is multiplied by one matrix only",
            _TRIED,
            check=vector_product,
            ops=frozenset({"MatMul"}),
            fix=("vector_matmul",),
        ),
        Rule(
            "plugin",
            "refused",
            "TensorRT brings a plugin for it, TensorRT-RTX does not",
            f"{_OPERATORS}; {_TRIED}",
            check=without_plugins,
            ops=PLUGINS,
            advice="build with TensorRT, or leave what follows it to the application",
        ),
        Rule(
            "operator",
            "refused",
            "the parser does not import it",
            f"{_OPERATORS}; {_TRIED}",
            check=unsupported,
            advice="write it in operators that are imported, or bring a plugin",
        ),
        Rule(
            "operator-form",
            "refused",
            "the parser does not import it in this form",
            f"{_OPERATORS}; {_TRIED}",
            check=limited,
            ops=frozenset(LIMITS),
        ),
        Rule(
            "int32-bias",
            "refused",
            "DequantizeLinear takes no int32 codes, as those of a bias",
            _TRIED,
            check=_int32_codes,
            ops=frozenset({"DequantizeLinear"}),
            fix=("float_bias",),
        ),
        Rule(
            "zero-point",
            "refused",
            "a zero point is not 0",
            f"{_TYPES}; {_TRIED}",
            check=nonzero_zero_point,
            ops=_QDQ,
            fix=_TO_SYMMETRIC,
        ),
        Rule(
            "unsigned-codes",
            "refused",
            "unsigned codes are refused, or read as int8, which cuts them off at 127",
            f"{_TYPES}; {_TRIED}",
            check=_unsigned,
            ops=_QDQ,
            fix=_TO_SYMMETRIC,
        ),
        Rule(
            "code-type",
            "refused",
            "codes are int8, int4, float8e4m3fn or float4e2m1",
            f"{_TYPES}; {_TRIED}",
            check=_other_codes,
            ops=_QDQ,
        ),
        Rule(
            "scale",
            "refused",
            "scales must be positive",
            _TRIED,
            check=_scale,
            ops=_QDQ,
        ),
        Rule(
            "channel-activation",
            "refused",
            "an activation has one scale",
            f"{_TYPES}; {_TRIED}",
            check=_channel_activation,
            ops=frozenset({"QuantizeLinear"}),
            advice="calibrate it per tensor",
        ),
        Rule(
            "ragged-blocks",
            "refused",
            "blocks must divide the axis",
            _TRIED,
            check=_ragged,
            ops=frozenset({"DequantizeLinear"}),
            advice="quantize the weight with a block that divides K",
        ),
        Rule(
            "int4-blocks",
            "not fused",
            "int4 weights are fast in blocks of 64 or 128 along K",
            _TYPES,
            check=_block_length,
            ops=frozenset({"DequantizeLinear"}),
        ),
        Rule(
            "weight-alone",
            "not fused",
            "an int8 weight with float data is dequantized, and the product is float",
            _TYPES,
            check=_weight_alone,
            ops=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
        ),
    ),
    parser=ask,
)
