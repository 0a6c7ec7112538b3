"""NVIDIA GPUs through TensorRT and TensorRT-RTX.

The opposite of a CPU: only what enters a fused unit (a convolution or matrix product with what runs
in its kernel) stands behind Q/DQ; no result does, and biases stay in float. All is symmetric int8
with zero points of 0, or symmetric float8e4m3fn. The builder moves QuantizeLinear backwards through pooling, layout operators
and Concat into the unit in front of them, if they share one scale.
"""

from qgraph.encoding import Spec
from qgraph.target import OpRule, Target, WeightOnlyRules
from qgraph.targets.numeric import NUMERIC

_QDQ = "NVIDIA TensorRT documentation, 'Working with quantized types', Q/DQ placement"
_MODELOPT = "NVIDIA Model Optimizer's placement of Q/DQ for TensorRT"

# Floating-point codes pay in large products: what has fewer channels, depthwise convolutions among
# them, stays in float, and so do shortcuts and operators that only hand codes on.
_FLOAT8 = (
    OpRule("Conv", ("activation", "weight", "other"), "float", least=16, source=_MODELOPT),
    OpRule(
        "Gemm",
        ("activation", "weight", "other"),
        "float",
        least=16,
        vectors=False,
        source=_MODELOPT,
    ),
    OpRule(
        "MatMul",
        ("activation", "weight"),
        "float",
        products=True,
        least=16,
        vectors=False,
        source=_MODELOPT,
    ),
)

TENSORRT = Target(
    name="tensorrt",
    summary="NVIDIA GPU: TensorRT or TensorRT-RTX, which build engines without a GPU",
    engines=("tensorrt",),
    precisions=("fp32", "fp16", "fp8", "int8", "int4"),
    default_precision="int8",
    activation=Spec("int8", symmetric=True),
    weight=Spec("int8", symmetric=True, axis=0, narrow=True),
    activations={"fp8": Spec("float8e4m3fn")},
    weights={"fp8": Spec("float8e4m3fn", axis=0)},
    rows={"fp8": _FLOAT8},
    placement="units",
    rules=(
        OpRule("Conv", ("activation", "weight", "other"), "float", source=_QDQ),
        OpRule("ConvTranspose", ("activation", "weight", "other"), "float", source=_QDQ),
        OpRule(
            "Gemm",
            ("activation", "weight", "other"),
            "float",
            least=16,
            vectors=False,
            source=_MODELOPT,
        ),
        OpRule(
            "MatMul",
            ("activation", "weight"),
            "float",
            products=True,
            least=16,
            vectors=False,
            source=_MODELOPT,
        ),
        # Only the shortcut of a residual Add: the other operand is added in a kernel's accumulator.
        OpRule("Add", ("activation",), "float", starts=False, source=_MODELOPT),
        OpRule("Concat", ("activation",), "same", starts=False, source=_QDQ),
        OpRule("MaxPool", ("activation",), "same", starts=False, source=_QDQ),
        OpRule("Reshape", ("activation", "other"), "same", starts=False, source=_QDQ),
        OpRule("Flatten", ("activation",), "same", starts=False, source=_QDQ),
        OpRule("Transpose", ("activation",), "same", starts=False, source=_QDQ),
        OpRule("Squeeze", ("activation", "other"), "same", starts=False, source=_QDQ),
        OpRule("Unsqueeze", ("activation", "other"), "same", starts=False, source=_QDQ),
        OpRule("Slice", ("activation", "other"), "same", starts=False, source=_QDQ),
        OpRule("Gather", ("activation", "other"), "same", starts=False, source=_QDQ),
        OpRule("Pad", ("activation", "other"), "same", starts=False, source=_QDQ),
        OpRule("Resize", ("activation", "other"), "same", starts=False, source=_QDQ),
    ),
    fused=(
        "Add",
        "BatchNormalization",
        "Clip",
        "Elu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "MaxPool",
        "Mish",
        "Mul",
        "PRelu",
        "Relu",
        "Sigmoid",
        "Softplus",
        "Swish",
        "Tanh",
    ),
    # Half of the codes are below 0, which a Relu leaves empty: channels want to be more equal than
    # uint8 wants them (docs/targets.md).
    settings={
        "int8": ("equalize_depthwise.power=0.65",),
        "fp8": ("calibrate.observer=minmax",),
    },
    weight_only=WeightOnlyRules(
        {"QuantizedWeight": ("dequantize_linear",)},
        bits=(4,),
        blocks=(64, 128),
        symmetric=True,
        negative_scales=False,
        # The builder takes rows / scales for the length of a block: it refuses a shorter last one,
        # or, where that comes out whole (192 rows in blocks of 128), takes blocks of another length.
        whole_blocks=True,
        source=_QDQ,
    ),
    devices={"": "h100"},
    half_codes=True,
    lowering=("expand_functions", "slice_axes", "vector_matmul"),
    ranges={"Softmax": (0.0, 1.0)},
    left_float={
        **NUMERIC,
        "GRU": "TensorRT has no integer GRU",
        "LSTM": "TensorRT has no integer LSTM",
    },
)
