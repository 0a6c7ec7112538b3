"""How the engines that artifacts are made for look from outside of qgraph.

The same settings as in `qgraph/runtime/`, whose files say why.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qgraph.runtime.backend import EngineOptions

# How cuDNN finds an algorithm for a convolution, with the number that Triton has for it.
CONV_SEARCHES = {"EXHAUSTIVE": "0", "HEURISTIC": "1", "DEFAULT": "2"}


@dataclass(frozen=True)
class Outside:
    """One engine, as plain onnxruntime and Triton know it.

    Attributes:
        backend: Triton's backend.
        gpu: Whether it runs on an NVIDIA GPU.
        accelerator: Which of onnxruntime's providers Triton is to put in front; "" for none.
        providers: Providers for an onnxruntime session, best first.
        plugin: Module of a plugin provider that takes their place where it is installed.
        known: Whether the artifact was made for an engine that is in the table.
    """

    backend: str
    gpu: bool = False
    accelerator: str = ""
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    plugin: str = ""
    known: bool = True


_CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")
_TENSORRT = Outside(
    "onnxruntime",
    gpu=True,
    accelerator="tensorrt",
    providers=("TensorrtExecutionProvider", *_CUDA),
)
_ENGINES = {
    "onnxruntime-cpu": Outside("onnxruntime"),
    "onnxruntime-cuda": Outside("onnxruntime", gpu=True, accelerator="cuda", providers=_CUDA),
    "openvino": Outside("openvino", plugin="onnxruntime_ep_openvino"),
    "tensorrt": _TENSORRT,
    "tensorrt-ep": _TENSORRT,
    "onnxruntime-tensorrt": _TENSORRT,
}
# For targets without an engine here, and engines that are not in the table.
_OTHER = Outside("onnxruntime", known=False)


def outside(engine: str) -> Outside:
    """How an engine looks from outside; onnxruntime on the CPU for one that is not known."""
    return _ENGINES.get(engine, _OTHER)


def cuda_options(own: Mapping[str, Any]) -> dict[str, str]:
    """Options of onnxruntime's CUDA provider.

    Args:
        own: The engine's own options, as the manifest has them: `tf32`, `nhwc` and `conv_search`.
            CUDA graphs (`graph`) need buffers that stay where they are and are left out.
    """
    search = own.get("conv_search", "HEURISTIC")
    options = {
        "use_tf32": str(int(own.get("tf32") is True)),
        "cudnn_conv_algo_search": search if search in CONV_SEARCHES else "HEURISTIC",
    }
    return options | ({"prefer_nhwc": "1"} if own.get("nhwc") is True else {})


def provider_options(engine: Outside, own: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """Providers with their options, as onnxruntime takes them."""
    cuda = _CUDA[0]
    return [(name, cuda_options(own) if name == cuda else {}) for name in engine.providers]


def openvino_properties(options: EngineOptions) -> dict[str, str]:
    """OpenVINO's own properties for an artifact's options.

    The precision is always said: without it OpenVINO computes float32 models in bfloat16 on CPUs
    that have it.
    """
    threads = {"INFERENCE_NUM_THREADS": str(options.threads)} if options.threads else {}
    return {"INFERENCE_PRECISION_HINT": options.float_precision, **threads}
