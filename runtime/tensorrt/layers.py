"""What an engine says about its layers, mapped back to the nodes of the model.

The JSON is what `EngineInspector.get_engine_information` prints with detailed verbosity:
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-tools.html. A layer's
Metadata names the ONNX nodes it was made of, apart by the control characters 0x1e and 0x1f.
TensorRT 11 has renamed fields (migration guide, IEngineInspector); both spellings are read.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qgraph.errors import EngineError

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
_REFORMATS = ("reformat", "reformatting copynode")


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name: The engine's name for it.
        kind: Its type, such as `CaskConvolution` or `Reformat`.
        nodes: The model's nodes that it runs; several are fused.
        reads: Element types of its inputs, such as `int8`.
        writes: Element types of its outputs.
        tactic: Name of its kernel; empty where the engine hides it.
        time_us: Microseconds a run; None where not measured.
    """

    name: str
    kind: str = ""
    nodes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    tactic: str = ""
    time_us: float | None = None

    @property
    def reformats(self) -> bool:
        """Whether it only changes the layout or type of a tensor."""
        return self.kind.lower() in _REFORMATS or self.name.lower().startswith(_REFORMATS)

    @property
    def fused(self) -> bool:
        """Whether it runs several nodes in one kernel."""
        return len(self.nodes) > 1


@dataclass(frozen=True)
class Mapped:
    """A layer beside what was planned for its nodes.

    Attributes:
        layer: The layer.
        planned: Precision that the plan has for its nodes: the narrowest of them; empty if none.
        as_planned: Whether it reads that precision; True where nothing narrower than the
            engine's float types was planned.
    """

    layer: Layer
    planned: str
    as_planned: bool


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


def map_layers(layers: Iterable[Layer], plan: Mapping[str, str]) -> list[Mapped]:
    """Put layers beside the plan, those that did not run as planned first, then the slowest.

    Args:
        layers: Of an engine.
        plan: By node name, its precision, as explain.json has them.
    """
    mapped = [_mapped(layer, plan) for layer in layers]
    return sorted(mapped, key=lambda each: (each.as_planned, -(each.layer.time_us or 0.0)))


def _mapped(layer: Layer, plan: Mapping[str, str]) -> Mapped:
    wanted = {plan[node] for node in layer.nodes if node in plan}
    narrow = [name for name in ("int4", "fp4", "fp8", "int8") if name in wanted]
    if not narrow or layer.reformats or not layer.reads:
        return Mapped(layer, next(iter(sorted(wanted)), ""), True)
    return Mapped(layer, narrow[0], narrow[0] in layer.reads)


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
