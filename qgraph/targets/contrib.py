"""Operators that onnxruntime adds to ONNX's and has fast kernels for, by engine and float type."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contributed:
    """What an engine executes beside ONNX's operators.

    Attributes:
        operators: By `fp32`, `fp16` and `bf16`.
        options: By pass of `qgraph.passes.contrib`, how it suits the engine.
        source: Where this comes from.
    """

    operators: Mapping[str, frozenset[str]] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str = ""


NOTHING = Contributed()

_NORMS = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})

# In bfloat16 it has few kernels, in float16 it computes little but attention. It has more kernels
# in float32 than are named here: MultiHeadAttention and SkipLayerNormalization take as long as
# what they are written from (`python -m benchmarks.contrib`).
ONNXRUNTIME_CPU = Contributed(
    {"fp32": frozenset({"GroupQueryAttention", "SkipSimplifiedLayerNormalization"})},
    options={"group_query_attention": {"presents": False}},
    source="the kernel registry of onnxruntime 1.32",
)

_CUDA = frozenset({"MultiHeadAttention"}) | _NORMS
_CUDA_HALF = frozenset({"GroupQueryAttention"}) | _CUDA
ONNXRUNTIME_CUDA = Contributed(
    {"fp32": _CUDA, "fp16": _CUDA_HALF, "bf16": _CUDA_HALF},
    source="onnxruntime: docs/OperatorKernels.md, CUDAExecutionProvider, as of 2026",
)

# By backend. An engine that is not here is given ONNX's own operators.
CONTRIBUTED: Mapping[str, Contributed] = {
    "onnxruntime-cpu": ONNXRUNTIME_CPU,
    "onnxruntime-cuda": ONNXRUNTIME_CUDA,
}
