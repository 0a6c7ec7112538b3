"""x86 CPUs through onnxruntime's CPU provider and OpenVINO.

Both want every quantized operator between DequantizeLinear and QuantizeLinear, activations in
asymmetric uint8 (signed ones cost ORT 2 to 5 times, and OpenVINO refuses signed with a zero point),
weights in symmetric int8 per output channel and biases in int32.
"""

from dataclasses import replace

from qgraph.encoding import Spec
from qgraph.target import OpRule, Target, WeightOnlyRules
from qgraph.targets.numeric import NUMERIC

_QDQ = "onnxruntime/core/optimizer/qdq_transformer/selectors_actions (QDQ node groups)"

CPU = Target(
    name="cpu",
    summary="x86-64 CPU: onnxruntime, with OpenVINO where it runs and is faster",
    engines=("onnxruntime-cpu", "openvino"),
    precisions=(
        *("fp32", "fp16", "bf16", "int8", "int8-dynamic"),
        *("int8-weights", "int4", "int3", "int2"),
    ),
    default_precision="int8",
    activation=Spec("uint8", symmetric=False),
    weight=Spec("int8", symmetric=True, axis=0, narrow=True),
    rules=(
        OpRule("Conv", ("activation", "weight", "bias"), "quantized", source=_QDQ),
        OpRule("Gemm", ("activation", "weight", "bias"), "float", source=_QDQ),
        OpRule("MatMul", ("activation", "weight"), "float", source=_QDQ),
        OpRule("Add", ("activation",), "quantized", starts=False, source=_QDQ),
        OpRule("Mul", ("activation",), "quantized", starts=False, source=_QDQ),
        OpRule("GlobalAveragePool", ("activation",), "quantized", starts=False, source=_QDQ),
        OpRule("AveragePool", ("activation",), "quantized", starts=False, source=_QDQ),
        OpRule("MaxPool", ("activation",), "same", starts=False, source=_QDQ),
        OpRule("Concat", ("activation",), "same", starts=False, source=_QDQ),
        OpRule("Reshape", ("activation", "other"), "same", starts=False, source=_QDQ),
        OpRule("Flatten", ("activation",), "same", starts=False, source=_QDQ),
        OpRule("Transpose", ("activation",), "same", starts=False, source=_QDQ),
        OpRule("Squeeze", ("activation", "other"), "same", starts=False, source=_QDQ),
        OpRule("Unsqueeze", ("activation", "other"), "same", starts=False, source=_QDQ),
        OpRule("Slice", ("activation", "other"), "same", starts=False, source=_QDQ),
        OpRule("Gather", ("activation", "other"), "same", starts=False, source=_QDQ),
        OpRule("Resize", ("activation", "other"), "same", starts=False, source=_QDQ),
    ),
    absorbs=("Relu", "Clip"),
    left_float={
        "ConvTranspose": "onnxruntime's CPU provider has no integer ConvTranspose",
        **NUMERIC,
        "GRU": "onnxruntime has no integer GRU",
        "LSTM": "ONNX has no integer LSTM",
    },
    # With activations in float only the kernels for 4 bits and whole zero points are faster than
    # the float product (docs/weights.md, "Forms"). The others' weights become floats when the model
    # is loaded: small on disk, as fast as float. MixedInt8 multiplies in integers.
    weight_only=WeightOnlyRules(
        {
            "QuantizedWeight": ("matmul_nbits", "dequantize_linear"),
            "QuantizedWeight2": ("cast_scale", "matmul_nbits", "dequantize_linear"),
            "QuantizedWeight8": ("cast_scale", "matmul_nbits", "dequantize_linear"),
            "FloatZero": ("cast_scale", "matmul_nbits"),
            "BlockCodebook": ("block_codebook", "matmul_bnb4"),
            "ChannelCodebook": ("channel_codebook",),
            "MixedInt8": ("mixed_int8",),
            "Table": ("gather_table", "gather_plain"),
        },
        blocks=(0, 16, 32, 64, 128, 256),
        # Twice to twenty times as fast as with data in float, at every width (docs/weights.md).
        accuracy_level=4,
        source="onnxruntime 1.32: MatMulNBits",
    ),
    # onnxruntime puts Casts around operators that it has no float16 kernel for. Of ONNX's own
    # node tests (onnx.backend.test) only those with these operators fail in float16: they have a
    # kernel, which then refuses reductions. In bfloat16 it has almost no kernels and adds no
    # Casts.
    half_ops={"fp16": frozenset({"ScatterElements", "ScatterND"}), "bf16": None},
)

CPU_X86 = replace(CPU, name="cpu-x86", summary="the same as cpu, by the name of its hardware")
