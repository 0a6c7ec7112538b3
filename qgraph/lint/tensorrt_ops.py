"""Operators that TensorRT's ONNX parser does not import, and what it asks of others: facts.

Operators: what `OnnxParser.supports_operator` of TensorRT-RTX 1.7.1.116 answers for every operator
of onnx 1.23, less DeformConv, which TensorRT 10 imports (onnx-tensorrt, docs/operators.md). Forms:
what it says of the models of ONNX's own node tests, and of tests/runtime/constructs.py.
"""

import importlib.util
from collections.abc import Callable, Mapping

from qgraph.graph import Node
from qgraph.lint.view import View
from qgraph.passes.rewrites.expand_functions import EXPANDED

UNSUPPORTED = frozenset(
    [
        "AffineGrid",
        "Bernoulli",
        "BitCast",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "CausalConvWithState",
        "CenterCropPad",
        "Col2Im",
        "Compress",
        "ConcatFromSequence",
        "ConvInteger",
        "CumProd",
        "DFT",
        "Det",
        "DynamicQuantizeLinear",
        "ImageDecoder",
        "LinearAttention",
        "MatMulInteger",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "NegativeLogLikelihoodLoss",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "QLinearConv",
        "QLinearMatMul",
        "RegexFullMatch",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SoftmaxCrossEntropyLoss",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "SwiGLU",
        "TfIdfVectorizer",
        "Unique",
    ]
)
# Operators of other domains that the parser takes for ONNX's of the same name and meaning.
NAMESAKES = frozenset({"Gelu", "QuantizeLinear", "DequantizeLinear"})
# Operators that TensorRT imports and TensorRT-RTX, which brings no plugins, does not.
PLUGINS = frozenset({"DeformConv", "NonMaxSuppression", "NonZero", "RoiAlign"})
# Element types without a counterpart in TensorRT; float64 is computed in float32.
NO_TYPE = frozenset(
    {
        *("INT16", "UINT16", "UINT32", "UINT64", "STRING", "COMPLEX64", "COMPLEX128"),
        *("INT2", "UINT2", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"),
    }
)
# Element types that only Q/DQ reads and writes.
_PACKED = frozenset({"FLOAT8E4M3FN", "FLOAT4E2M1", "INT4", "UINT4"})
# The smallest head that the kernels for Attention are made for.
_LEAST_HEAD = 16

_AXES = "its axes are computed"


Limit = Callable[[View, Node], str | None]


def _attribute(name: str, allowed: tuple[object, ...], default: object) -> Limit:
    def check(view: View, node: Node) -> str | None:
        value = view.graph.attribute(node, name, default)
        value = value.decode() if isinstance(value, bytes) else value
        return None if value in allowed else f"{name} = {value}"

    return check


def _ones(name: str) -> Limit:
    def check(view: View, node: Node) -> str | None:
        values = view.graph.attribute(node, name, ()) or ()
        return None if all(v == 1 for v in values) else f"{name} = {list(values)}"

    return check


def _constant(index: int, what: str) -> Limit:
    def check(view: View, node: Node) -> str | None:
        value = view.input(node, index)
        return None if value is None or view.graph.is_constant(value) else what

    return check


def _one_output(view: View, node: Node) -> str | None:
    used = [out for out in node.outputs[1:] if list(out.uses()) or out.is_graph_output()]
    return f"its output {node.outputs.index(used[0])} is used" if used else None


def _no_training(view: View, node: Node) -> str | None:
    wanted = view.graph.scalar(view.input(node, 2)) if len(node.inputs) > 2 else 0.0
    return None if wanted == 0 else "training_mode"


def _text(view: View, node: Node) -> str | None:
    forms = [name for name in ("value_string", "value_strings") if name in node.attributes]
    return f"it holds {forms[0]}" if forms else None


def _cast(view: View, node: Node) -> str | None:
    """Codes of 4 and 8 bits come and go through Q/DQ only."""
    kinds = [view.dtype(view.input(node, 0)), view.dtype(node.outputs[0])]
    found = [each.name for each in kinds if each is not None and each.name in _PACKED]
    return f"to or from {found[0].lower()}" if found else None


def _even(view: View, node: Node) -> str | None:
    tensor = view.graph.tensor(view.input(node, 0))
    packed = tensor is not None and tensor.dtype.name in ("INT4", "FLOAT4E2M1")
    return f"{tensor.size} codes of 4 bits" if packed and tensor and tensor.size % 2 else None


def _whole_numbers(view: View, node: Node) -> str | None:
    dtype = view.dtype(view.input(node, 0))
    if dtype is None or dtype.name in ("INT32", "INT64") or view.graph.attribute(node, "fmod", 0):
        return None
    return f"fmod = 0 of {dtype.name.lower()}"


def _not_of(*names: str) -> Limit:
    def check(view: View, node: Node) -> str | None:
        dtype = view.dtype(view.input(node, 0))
        return f"of {dtype.name.lower()}" if dtype is not None and dtype.name in names else None

    return check


def _stretch(view: View, node: Node) -> str | None:
    policy = _plain(view.graph.attribute(node, "keep_aspect_ratio_policy", "stretch"))
    mode = _plain(view.graph.attribute(node, "coordinate_transformation_mode", ""))
    if policy != "stretch":
        return f"keep_aspect_ratio_policy = {policy}"
    missing = mode in ("tf_crop_and_resize", "half_pixel_symmetric")
    return f"coordinate_transformation_mode = {mode}" if missing else None


def _plain(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value


def written_out(view: View, node: Node) -> str | None:
    """Check of a rule: an operator that is imported once it is written in others."""
    if not view.graph.is_standard(node) or node.op_type not in EXPANDED:
        return None
    if node.op_type == "Attention":
        return _attention(view, node)
    return f"{node.op_type} as such" if EXPANDED[node.op_type](node) else None


def _attention(view: View, node: Node) -> str | None:
    query = view.input(node, 0)
    dtype, shape = view.dtype(query), view.graph.shape(query)
    if dtype is not None and dtype.name not in ("FLOAT16", "BFLOAT16"):
        return f"Attention of {dtype.name.lower()}"
    if len(node.outputs) > 1 or any(view.input(node, index) for index in (4, 5, 6)):
        return "Attention with a past, or with further outputs"
    if view.input(node, 3) is not None and view.graph.attribute(node, "is_causal", 0):
        return "a mask beside is_causal"
    named = [name for name in ("softcap", "softmax_precision") if view.graph.attribute(node, name)]
    if named:
        return named[0]
    width = shape[-1] if shape else None
    heads = view.graph.attribute(node, "q_num_heads", 0) if shape and len(shape) == 3 else 1
    if isinstance(width, int) and width < _LEAST_HEAD * heads:
        return f"heads of {width // max(heads, 1)}"
    values = view.graph.shape(view.input(node, 2))
    keys = view.graph.shape(view.input(node, 1))
    differ = bool(keys and values and keys[-1] != values[-1])
    return "values of another width than keys" if differ else None


def slice_axes(view: View, node: Node) -> str | None:
    """Check of a rule: a Slice without axes that has fewer starts than axes."""
    if view.input(node, 3) is not None or len(node.inputs) < 3:
        return None
    shape, starts = view.graph.shape(node.inputs[0]), view.graph.shape(node.inputs[1])
    count = starts[0] if starts else None
    short = shape is not None and isinstance(count, int) and count < len(shape)
    return f"{count} starts, no axes" if short else None


def vector_product(view: View, node: Node) -> str | None:
    """Check of a rule: a vector in front of a stack of matrices."""
    first, second = (view.graph.shape(view.input(node, index)) for index in (0, 1))
    stack = first is not None and second is not None and len(first) == 1 and len(second) > 2
    return "a vector by a stack of matrices" if stack else None


def without_plugins(view: View, node: Node) -> str | None:
    """Check of a rule: an operator that only TensorRT has, where that is not installed."""
    if not view.graph.is_standard(node) or importlib.util.find_spec("tensorrt") is not None:
        return None
    return f"{node.op_type} is not in TensorRT-RTX"


# Operators that do not take uint8, which is for Q/DQ and casts.
ARITHMETIC = (
    *("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Pow", "Greater", "Less"),
    *("GreaterOrEqual", "LessOrEqual", "MaxPool", "Clip", "Abs", "Sum", "Mean"),
)

_REDUCTIONS = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]

# By operator. Each was tried with TensorRT-RTX 1.7.1.116.
LIMITS: Mapping[str, tuple[Limit, ...]] = {
    **{op: (_not_of("UINT8"),) for op in ARITHMETIC},
    "AveragePool": (_ones("dilations"),),
    "BatchNormalization": (_attribute("training_mode", (0,), 0),),
    "Cast": (_cast,),
    "CastLike": (_cast,),
    "Clip": (_not_of("INT8", "UINT8"),),
    "Constant": (_text,),
    "CumSum": (_constant(1, "its axis is computed"),),
    "DequantizeLinear": (_even,),
    "Dropout": (_no_training,),
    "LSTM": (_attribute("input_forget", (0,), 0),),
    "LpPool": (_attribute("p", (1, 2), 2), _ones("dilations")),
    "MaxPool": (_ones("dilations"), _one_output, _not_of("UINT8")),
    "Mod": (_whole_numbers,),
    "Pad": (_constant(3, _AXES),),
    "Range": (_not_of("FLOAT16", "BFLOAT16"),),
    "Resize": (_attribute("antialias", (0,), 0), _stretch),
    "STFT": (_constant(1, "its frame_step is computed"),),
    "ScatterElements": (_attribute("reduction", ("none",), "none"),),
    "ScatterND": (_attribute("reduction", ("none",), "none"),),
    "Squeeze": (_constant(1, _AXES),),
    "TensorScatter": (_attribute("mode", ("linear",), "linear"),),
    "Unsqueeze": (_constant(1, _AXES),),
    **{op: (_constant(1, _AXES),) for op in _REDUCTIONS},
}


def unsupported(view: View, node: Node) -> str | None:
    """Check of a rule: an operator that the parser does not import."""
    if (node.domain, node.op_type) in view.functions:
        return None
    if view.graph.is_standard(node):
        return f"{node.op_type} is not imported" if node.op_type in UNSUPPORTED else None
    if node.op_type in NAMESAKES or node.op_type.startswith("TRT_"):
        return None
    return f"{node.op_type} of domain {node.domain!r} needs a plugin of that name"


def limited(view: View, node: Node) -> str | None:
    """Check of a rule: an operator in a form that the parser does not import."""
    if not view.graph.is_standard(node):
        return None
    reasons = (check(view, node) for check in LIMITS.get(node.op_type, ()))
    return next((reason for reason in reasons if reason is not None), None)
