"""NVIDIA GPUs through onnxruntime's CUDA provider: fp16, fp8, and weights in few bits.

Integers are not among its precisions: the provider has no kernels for QLinear operators, so it runs
Q/DQ models in float, with the conversions on top. Nor is bfloat16: of what ONNX allows in it, the
provider lacks two dozen operators, Pad and most kinds of pooling among them.
"""

from qgraph.encoding import Spec
from qgraph.target import Float8Rules, Target, WeightOnlyRules
from qgraph.targets.contrib import ONNXRUNTIME_CUDA

_SLOW_INT8 = (
    "onnxruntime's CUDA provider has no integer kernels and takes 2 to 6 times as long as in fp16"
)

CUDA = Target(
    name="cuda",
    summary="NVIDIA GPU: onnxruntime's CUDA provider, fp16, fp8, weights in 4 or 8 bits",
    engines=("onnxruntime-cuda",),
    precisions=("fp32", "fp16", "fp8", "int4", "int8-weights"),
    default_precision="fp16",
    # No precision of it quantizes activations; there are no rules either.
    activation=Spec("int8", symmetric=True),
    weight=Spec("int8", symmetric=True, axis=0, narrow=True),
    rules=(),
    # Operators with a float32 kernel and none in float16: onnxruntime's docs/OperatorKernels.md,
    # CUDAExecutionProvider, as of 2026. What it has no kernel for at all runs on the CPU.
    half_ops={"fp16": frozenset({"EyeLike", "GridSample", "Range", "RoiAlign"})},
    float_type="fp16",
    # contrib_ops/cuda/quantization/matmul_nbits.cc: 4 and 8 bits; codes with float zero points miss
    # its fast kernels and are made floats at every run.
    weight_only=WeightOnlyRules(
        {
            "QuantizedWeight": ("matmul_nbits", "dequantize_linear"),
            "BlockCodebook": ("matmul_bnb4",),
        },
        bits=(4, 8),
        blocks=(16, 32, 64, 128),
        source="onnxruntime: contrib_ops/cuda/quantization/matmul_nbits.cc",
    ),
    contributed=ONNXRUNTIME_CUDA,
    costs="h100",
    # Compute capability 8.9 and newer. cuBLAS wants rows of 16 bytes.
    float8=Float8Rules(
        kernel="gemm_float8",
        costs="h100-fp8",
        source="onnxruntime: contrib_ops/cuda/math/gemm_float8.cu",
    ),
    refused={"int8": _SLOW_INT8, "int8-dynamic": _SLOW_INT8},
)
