"""Operators that TensorRT's ONNX parser does not import, and what it asks of others: facts.

Operators: what `OnnxParser.supports_operator` of TensorRT-RTX 1.7.1.116 answers for every operator
of onnx 1.23, less DeformConv, which TensorRT 10 imports (onnx-tensorrt, docs/operators.md).
"""

from collections.abc import Callable, Mapping

from qgraph.graph import Node
from qgraph.lint.view import View

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
# Element types without a counterpart in TensorRT; float64 is computed in float32.
NO_TYPE = frozenset({"INT16", "UINT16", "UINT32", "UINT64", "STRING", "COMPLEX64", "COMPLEX128"})

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
    "AveragePool": (_ones("dilations"),),
    "BatchNormalization": (_attribute("training_mode", (0,), 0),),
    "Constant": (_text,),
    "CumSum": (_constant(1, "its axis is computed"),),
    "Dropout": (_no_training,),
    "LayerNormalization": (_one_output,),
    "LSTM": (_attribute("input_forget", (0,), 0),),
    "MaxPool": (_ones("dilations"), _one_output),
    "Pad": (_constant(3, _AXES),),
    "Resize": (_attribute("antialias", (0,), 0),),
    "ScatterND": (_attribute("reduction", ("none",), "none"),),
    "Squeeze": (_constant(1, _AXES),),
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
