"""Triton's backends: what each wants its file to be called, and what it takes.

Sources: READMEs and sources of onnxruntime_backend, tensorrt_backend and openvino_backend, and the
table of types in docs/user_guide/model_configuration.md, github.com/triton-inference-server.
"""

from dataclasses import dataclass

TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
    "string": "TYPE_STRING",
}
_ALL_TYPES = frozenset(TYPES.values())
_OPENVINO_TYPES = _ALL_TYPES - {"TYPE_FP64", "TYPE_BF16", "TYPE_STRING"}
_TENSORRT_TYPES = _OPENVINO_TYPES - {"TYPE_INT16", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64"} | {
    "TYPE_BF16"
}


@dataclass(frozen=True)
class Backend:
    """One of Triton's backends.

    Attributes:
        name: As Triton calls it.
        file: What the model must be called.
        types: Types of inputs and outputs that it takes.
        scalars: Whether it takes tensors without axes.
        batches: Whether batches of any size up to the largest cost what they should, so that
            batching may be switched on without being asked for.
    """

    name: str
    file: str
    types: frozenset[str]
    scalars: bool = False
    batches: bool = False


BACKENDS = {
    each.name: each
    for each in (
        Backend("onnxruntime", "model.onnx", _ALL_TYPES, scalars=True, batches=True),
        # An engine's profile may stop anywhere, and only the engine knows.
        Backend("tensorrt", "model.plan", _TENSORRT_TYPES),
        # It fixes the model to the largest batch and fills smaller ones up.
        Backend("openvino", "model.onnx", _OPENVINO_TYPES),
    )
}
