"""What a TensorRT engine says about its layers.

The JSON is what `EngineInspector.get_engine_information` prints with detailed verbosity:
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-tools.html. A layer's
Metadata names the ONNX nodes it was made of, apart by the control characters 0x1e and 0x1f.
TensorRT 11 has renamed fields (migration guide, IEngineInspector); both spellings are read.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qgraph.errors import EngineError
from qgraph.runtime.layers import Layer

_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]*)\]")
_TYPE_FIELDS = ("DataType", "Format/Datatype", "Format")
# As inspectors of different versions call element types; the first that is found counts.
_TYPES = (
    (re.compile(r"\b(bf16|bfloat16)\b"), "bf16"),
    (re.compile(r"\b(fp16|half|float16)\b"), "fp16"),
    (re.compile(r"\b(fp8|float8)\w*"), "fp8"),
    (re.compile(r"\b(fp4|float4)\w*"), "fp4"),
    (re.compile(r"\bint4\b"), "int4"),
    (re.compile(r"\bint8\b"), "int8"),
    (re.compile(r"\b(fp32|float|float32)\b"), "fp32"),
    (re.compile(r"\bu?int\d+\b|\bbool\b"), "integer"),
)


def parse_layers(text: str, times_us: Mapping[str, float] | None = None) -> list[Layer]:
    """Read the inspector's JSON.

    Args:
        text: Its JSON, of a whole engine.
        times_us: By layer name, microseconds a run.

    Raises:
        EngineError: It is no such JSON.
    """
    try:
        found = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineError("the engine's description can't be read", where="tensorrt") from error
    times = times_us or {}
    return [_layer(each, times) for each in found]


def _layer(entry: Any, times: Mapping[str, float]) -> Layer:
    if isinstance(entry, str):  # without detailed verbosity only names are there
        return Layer(entry, time_us=times.get(entry))
    if not isinstance(entry, dict):
        raise EngineError("a layer's description can't be read", where="tensorrt")
    name = str(entry.get("Name", ""))
    return Layer(
        name=name,
        kind=str(entry.get("LayerType", "")),
        nodes=tuple(dict.fromkeys(_NODE.findall(str(entry.get("Metadata", ""))))),
        reads=_types(entry.get("Inputs")),
        writes=_types(entry.get("Outputs")),
        tactic=str(entry.get("TacticName", "")),
        time_us=times.get(name),
    )


def _types(tensors: Any) -> tuple[str, ...]:
    if not isinstance(tensors, Sequence) or isinstance(tensors, str):
        return ()
    found = (_type(each) for each in tensors if isinstance(each, dict))
    return tuple(dict.fromkeys(name for name in found if name))


def _type(tensor: Mapping[str, Any]) -> str:
    text = next((str(tensor[field]).lower() for field in _TYPE_FIELDS if field in tensor), "")
    return next((name for pattern, name in _TYPES if pattern.search(text)), "")
