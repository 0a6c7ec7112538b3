"""NVIDIA GPUs through TensorRT inside onnxruntime: TensorRT's rules, onnxruntime's sessions.

Nodes that TensorRT refuses run in onnxruntime's CUDA or CPU provider, so more models run than with TensorRT
alone; the compile says which nodes, and what they cost.
"""

from dataclasses import replace

from qgraph.targets.tensorrt import TENSORRT

TENSORRT_EP = replace(
    TENSORRT,
    name="tensorrt-ep",
    summary="NVIDIA GPU: TensorRT or TensorRT-RTX as providers of onnxruntime; its route to int8",
    engines=("onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"),
)
