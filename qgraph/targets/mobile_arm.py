"""Phones and boards with 64-bit Arm cores: int8 for all layers, depthwise ones included.

Signed activations with a zero point, symmetric weights per channel and int32 biases are what
TensorFlow Lite's 8-bit specification, XNNPACK and onnxruntime's Arm kernels share; signed bytes
are what the SDOT and SMMLA instructions multiply.
"""

from dataclasses import replace

from qgraph.encoding import Spec
from qgraph.target import OpRule
from qgraph.targets.cpu import CPU
from qgraph.targets.numeric import NUMERIC

# What the devices' own compilers run in integers, beside what onnxruntime does.
DEVICE_RULES = (
    *CPU.rules,
    OpRule(
        "ConvTranspose",
        ("activation", "weight", "bias"),
        "quantized",
        source="TensorFlow Lite 8-bit quantization specification, TRANSPOSE_CONV",
    ),
)

MOBILE_ARM = replace(
    CPU,
    name="mobile-arm",
    summary="Arm phone or board: int8 everywhere, models up to 256 MiB",
    engines=(),
    rules=DEVICE_RULES,
    left_float=NUMERIC,
    half_ops={},
    precisions=("fp32", "int8", "int4"),
    activation=Spec("int8", symmetric=False),
    # Android gives an app between 192 and 512 MB (ActivityManager.getMemoryClass), which the model
    # shares with everything else.
    memory=256 << 20,
    no_engine="it runs on the device; qgraph has no connection to one",
)
