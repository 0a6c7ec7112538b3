"""NVIDIA GPUs through onnxruntime's CUDA provider: fp16, fp8, and weights in few bits.

The provider has no kernels for QLinear operators: it runs Q/DQ models in float, with the conversions
on top. So int8 is built as fp16 unless it is forced; then Q/DQ stands where TensorRT wants it, which
makes the fewest conversions, and with biases in float, whose DequantizeLinear the provider lacks.
bfloat16 is not among its precisions: of what ONNX allows in it, the provider lacks two dozen operators,
Pad and most kinds of pooling among them.
"""

from qgraph.encoding import Spec
from qgraph.target import Float8Rules, Target, WeightOnlyRules
from qgraph.targets.contrib import ONNXRUNTIME_CUDA
from qgraph.targets.tensorrt import TENSORRT

_SLOW_INT8 = (
    "onnxruntime's CUDA provider has no integer kernels and takes 2 to 6 times as long as in fp16"
)

CUDA = Target(
    name="cuda",
    summary="NVIDIA GPU: onnxruntime's CUDA provider, fp16, fp8, weights in 4 or 8 bits",
    engines=("onnxruntime-cuda",),
    precisions=("fp32", "fp16", "fp8", "int8", "int8-dynamic", "int4", "int8-weights"),
    default_precision="fp16",
    activation=Spec("int8", symmetric=True),
    weight=Spec("int8", symmetric=True, axis=0, narrow=True),
    placement="units",
    rules=TENSORRT.rules,
    fused=TENSORRT.fused,
    ranges=TENSORRT.ranges,
    left_float=TENSORRT.left_float,
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
    # A convolution multiplies as many rows as its image has places: too many for few bits to pay, and
    # as a product it would turn its image around.
    settings=dict.fromkeys(("int4", "int8-weights"), ("linear_to_matmul.convolutions=false",)),
    costs="h100",
    devices={"": "h100"},
    # Compute capability 8.9 and newer. cuBLAS wants rows of 16 bytes.
    float8=Float8Rules(
        kernel="gemm_float8",
        costs="h100-fp8",
        source="onnxruntime: contrib_ops/cuda/math/gemm_float8.cu",
    ),
    refused={"int8": _SLOW_INT8, "int8-dynamic": _SLOW_INT8},
    instead={"int8": "fp16", "int8-dynamic": "fp16"},
    # As exact as int8 or more, and at a known number of rows only where the costs say that it pays.
    instead_batch={"int8": "int8-weights", "int8-dynamic": "int8-weights"},
)
