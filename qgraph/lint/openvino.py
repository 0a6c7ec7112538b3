"""What OpenVINO's CPU plugin does not take, through its onnxruntime provider."""

from qgraph.graph import Node
from qgraph.lint.rule import Rule, RuleSet
from qgraph.lint.view import View

_MEASURED = "measured: onnxruntime-ep-openvino 1.8.1 ends with 'No suitable implementations'"


def _signed_with_zero_point(view: View, node: Node) -> str | None:
    if not view.is_quantizer(node) or view.code_type(node) != "int8":
        return None
    found = view.parameters(node)
    if isinstance(found, str) or not found.zero_point.any():
        return None
    values = sorted({int(zero) for zero in found.zero_point.reshape(-1)})
    return f"zero point {values[0]}" if len(values) == 1 else f"{len(values)} zero points"


RULES = RuleSet(
    "openvino",
    (
        Rule(
            "signed-zero-point",
            "refused",
            "int8 codes with a zero point other than 0",
            _MEASURED,
            check=_signed_with_zero_point,
            ops=frozenset({"QuantizeLinear", "DequantizeLinear"}),
            fix=("dequantize_early", "symmetric_weights", "signed_to_unsigned"),
        ),
    ),
)
