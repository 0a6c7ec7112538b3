"""What onnxruntime's CPU provider does not take, runs in float, or leaves between Q and DQ.

Which groups of DequantizeLinear, operator and QuantizeLinear become one integer kernel is data
here: `KINDS` says for each operator which checks of `qgraph.lint.qdq_groups` it must pass.
"""

from collections.abc import Iterable

from qgraph.graph import Node
from qgraph.lint.kernels import kernel_missing, kernels_known, unknown_domain
from qgraph.lint.qdq_groups import blocked_weight_refusal, group_refusal, sandwiched
from qgraph.lint.rule import Rule, RuleSet, Table
from qgraph.lint.view import View

_SELECTORS = "onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc"
_KERNELS = "the kernel registry of the installed onnxruntime (docs/OperatorKernels.md)"
_MEASURED = (
    "measured, onnxruntime 1.31, mobilenet_v2 and efficientnet_lite0: uint8 1.9 and 2.3 ms, int8 "
    "with zero points 4.1 and 4.8 ms, symmetric int8 10.3 and 14.2 ms"
)


def _no_kernel(view: View, node: Node) -> str | None:
    missing = kernel_missing(view, node)
    return None if missing is None or missing.casts else missing.what


def _cast_around(view: View, node: Node) -> str | None:
    missing = kernel_missing(view, node)
    return missing.what if missing is not None and missing.casts else None


def _signed_activation(view: View, node: Node) -> str | None:
    if not view.graph.is_standard(node) or view.graph.is_constant(view.input(node, 0)):
        return None
    return "codes are int8" if view.code_type(node) == "int8" else None


def _no_integer_kernel(view: View, node: Node) -> str | None:
    return NO_INTEGER_KERNEL(view, node) if view.reads_codes(node) else None


NO_INTEGER_KERNEL = Table(
    {
        "ConvTranspose": "there is no integer ConvTranspose",
        "GRU": "there is no integer GRU",
        "LSTM": "LSTM is integer as com.microsoft.DynamicQuantizeLSTM only",
        "RNN": "there is no integer RNN",
    }
)

# onnxruntime 1.31 refuses what is newer ("max supported IR version: 13", "opset 26").
_NEWEST_IR, _NEWEST_OPSET = 13, 26


def _too_new(view: View) -> Iterable[tuple[str, str]]:
    version = view.graph.model.ir_version or 0
    if version > _NEWEST_IR:
        yield "", f"IR version {version}, the newest it knows is {_NEWEST_IR}"
    if view.graph.opset > _NEWEST_OPSET:
        yield "", f"opset {view.graph.opset}, the newest it knows is {_NEWEST_OPSET}"


RULES = RuleSet(
    "onnxruntime-cpu",
    (
        Rule(
            "version",
            "refused",
            "the model is of a newer version than onnxruntime 1.31 knows",
            "tried: onnxruntime 1.31.1",
            scan=_too_new,
            advice="export it for an older opset",
        ),
        Rule(
            "unknown-domain",
            "refused",
            "no such operator: its domain is neither ONNX's nor onnxruntime's",
            "https://onnxruntime.ai/docs/reference/operators/add-custom-op.html",
            check=unknown_domain,
            advice="compile for an engine that has it, or write it in ONNX operators",
        ),
        Rule(
            "no-kernel",
            "refused",
            "there is no kernel for its types",
            _KERNELS,
            check=_no_kernel,
            advice="put a Cast to float32 in front of it",
        ),
        Rule(
            "float16",
            "falls back",
            "there is no float16 kernel: it runs in float32 between two Casts",
            _KERNELS,
            check=_cast_around,
        ),
        Rule(
            "no-integer-kernel",
            "falls back",
            "it runs in float behind DequantizeLinear",
            _KERNELS,
            check=_no_integer_kernel,
            ops=frozenset(NO_INTEGER_KERNEL.reasons),
        ),
        Rule(
            "no-qdq-selector",
            "falls back",
            "it stands between DequantizeLinear and QuantizeLinear but runs in float",
            "onnxruntime/core/optimizer/qdq_transformer/selectors_actions/"
            "qdq_selector_action_transformer.cc",
            check=sandwiched,
        ),
        Rule(
            "qdq-group",
            "not fused",
            "its DequantizeLinear and QuantizeLinear do not become one integer kernel",
            _SELECTORS,
            check=group_refusal,
        ),
        Rule(
            "blocked-weight",
            "not fused",
            "its weight is dequantized to float at every run, not inside MatMulNBits",
            _SELECTORS,
            check=blocked_weight_refusal,
            ops=frozenset({"MatMul"}),
            fix=("pack_matmul_nbits",),
        ),
        Rule(
            "signed-activations",
            "slow",
            "int8 activations take 2 to 5 times as long as uint8 ones",
            _MEASURED,
            check=_signed_activation,
            ops=frozenset({"QuantizeLinear"}),
            fix=("dequantize_early", "signed_to_unsigned"),
        ),
    ),
    prepare=kernels_known,
)
