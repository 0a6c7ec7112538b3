"""Recognising models that somebody has quantized already, which must not be quantized again."""

from collections import Counter

from qgraph.graph import Graph

# Operators that only quantized models have: ONNX's own, onnxruntime's (com.microsoft, see
# https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md), and the simulated
# quantization of OpenVINO, PyTorch and TensorRT exports.
_QUANTIZED = frozenset(
    {
        "ConvInteger",
        "DequantizeBFP",
        "DequantizeLinear",
        "DequantizeWithOrder",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "FakeQuantize",
        "GatherBlockQuantized",
        "GemmFloat8",
        "MatMulBnb4",
        "MatMulFpQ4",
        "MatMulInteger",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MulInteger",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
        "QMoE",
        "QuantizeBFP",
        "QuantizeLinear",
        "QuantizeWithOrder",
    }
)
_PREFIXES = ("QLinear", "QOrdered", "FakeQuant", "fake_quantize", "trt_FakeQuant")


def quantized_ops(graph: Graph) -> dict[str, int]:
    """Count the operators that show that a model is quantized, subgraphs and functions included.

    Returns:
        Counts by operator, in alphabetical order; empty for a float model.
    """
    counts: Counter[str] = Counter()
    functions = (node for function in graph.model.functions.values() for node in function)
    for nodes in (graph.walk(), functions):
        for node in nodes:
            op_type = node.op_type
            if op_type in _QUANTIZED or op_type.startswith(_PREFIXES):
                counts[op_type] += 1
    return dict(sorted(counts.items()))
