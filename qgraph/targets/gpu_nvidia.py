"""NVIDIA GPUs by compute capability: TensorRT's rules, and which number formats a GPU has."""

from dataclasses import replace

from qgraph.targets.tensorrt import TENSORRT

# Formats of matrix products by compute capability: NVIDIA TensorRT documentation, "Support matrix",
# hardware and precision. 7.5 is Turing, 8.x Ampere, 8.9 Ada, 9.0 Hopper, 10.x and 12.x Blackwell.
# int4 is a format of weights alone, multiplied in fp16 or bf16.
_TURING = ("fp32", "fp16", "int8")
_AMPERE = (*_TURING, "bf16", "int4")
_ADA = (*_AMPERE, "fp8")
_BLACKWELL = (*_ADA, "fp4")

GPU_NVIDIA = replace(
    TENSORRT,
    name="gpu-nvidia",
    summary="NVIDIA GPU, tensorrt's rules; gpu-nvidia:8.9 names a compute capability",
    devices={"": "h100", "9.0": "h100"},
    variants={
        "7.5": _TURING,
        "8.0": _AMPERE,
        "8.6": _AMPERE,
        "8.7": _AMPERE,
        "8.9": _ADA,
        "9.0": _ADA,
        "10.0": _BLACKWELL,
        "12.0": _BLACKWELL,
    },
)
