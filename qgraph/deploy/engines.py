"""How the engines that artifacts are made for look from outside of qgraph.

The same settings as in `qgraph/runtime/`, whose files say why; the tests compare them.
"""

from dataclasses import dataclass

from qgraph.runtime.backend import EngineOptions

_CUDA = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}


@dataclass(frozen=True)
class Outside:
    """One engine, as plain onnxruntime and Triton know it.

    Attributes:
        backend: Triton's backend.
        gpu: Whether it runs on an NVIDIA GPU.
        accelerator: Which of onnxruntime's providers Triton is to put in front; "" for none.
        providers: Providers for an onnxruntime session, with options, best first.
        plugin: Module of a plugin provider that takes their place where it is installed.
        known: Whether the artifact was made for an engine that is in the table.
    """

    backend: str
    gpu: bool = False
    accelerator: str = ""
    providers: tuple[tuple[str, dict[str, str]], ...] = ()
    plugin: str = ""
    known: bool = True


_CPU_PROVIDER: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
_CUDA_PROVIDER = ("CUDAExecutionProvider", _CUDA)
_TENSORRT = Outside(
    "onnxruntime",
    gpu=True,
    accelerator="tensorrt",
    providers=(("TensorrtExecutionProvider", {}), _CUDA_PROVIDER, _CPU_PROVIDER),
)
_ENGINES = {
    "onnxruntime-cpu": Outside("onnxruntime", providers=(_CPU_PROVIDER,)),
    "onnxruntime-cuda": Outside(
        "onnxruntime", gpu=True, accelerator="cuda", providers=(_CUDA_PROVIDER, _CPU_PROVIDER)
    ),
    "openvino": Outside("openvino", providers=(_CPU_PROVIDER,), plugin="onnxruntime_ep_openvino"),
    "tensorrt": _TENSORRT,
    "tensorrt-ep": _TENSORRT,
}
# For targets without an engine here, and engines that are not in the table.
_OTHER = Outside("onnxruntime", providers=(_CPU_PROVIDER,), known=False)


def outside(engine: str) -> Outside:
    """How an engine looks from outside; onnxruntime on the CPU for one that is not known."""
    return _ENGINES.get(engine, _OTHER)


def openvino_properties(options: EngineOptions) -> dict[str, str]:
    """OpenVINO's own properties for an artifact's options.

    The precision is always said: without it OpenVINO computes float32 models in bfloat16 on CPUs
    that have it.
    """
    threads = {"INFERENCE_NUM_THREADS": str(options.threads)} if options.threads else {}
    return {"INFERENCE_PRECISION_HINT": options.float_precision, **threads}
