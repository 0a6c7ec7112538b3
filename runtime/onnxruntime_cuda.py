"""Backend 'onnxruntime-cuda': ONNX Runtime's CUDA provider, with its CPU provider behind it.

TF32 is off unless asked for: the CUDA provider would otherwise multiply float32 with ten bits of
mantissa. Algorithms for convolutions are chosen by cuDNN's rules: trying them all takes seconds for
every new shape.

Options (`EngineOptions.engine`) are the fields of `CudaOptions`.
"""

import ctypes
from collections.abc import Collection, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from qgraph.errors import EngineError, QGraphError
from qgraph.runtime.backend import EngineOptions
from qgraph.runtime.cuda_ways import CudaOptions, CudaSettings, ways
from qgraph.runtime.options import own_options
from qgraph.runtime.ort_graphs import GraphSession
from qgraph.runtime.ort_session import OrtSession, load_onnxruntime, session_options

_PROVIDER = "CUDAExecutionProvider"


class OnnxRuntimeCuda:
    """ONNX Runtime on an NVIDIA GPU; what CUDA has no kernel for runs on the CPU."""

    name = "onnxruntime-cuda"
    provider = _PROVIDER

    def unavailable(self) -> str | None:
        """None when there is a GPU and onnxruntime-gpu can use it, else the reason."""
        try:
            _load()
        except QGraphError as error:
            return str(error)
        return None

    def variants(
        self, precision: str, operators: Collection[str] = (), asked: BaseModel | None = None
    ) -> Mapping[str, EngineOptions]:
        """Layouts, CUDA graphs and fused biases; see `qgraph.runtime.cuda_ways.ways`."""
        settings = asked if isinstance(asked, CudaSettings) else CudaSettings()
        found = ways(operators, settings)
        return {label: EngineOptions(engine=each.changed()) for label, each in found.items()}

    def device_memory(self) -> int | None:
        """Bytes in use on the first GPU; see `used_memory`."""
        return used_memory()

    def open(
        self, model: Path | bytes, options: EngineOptions | None = None
    ) -> OrtSession | GraphSession:
        """Open a model; see `qgraph.runtime.backend.Backend.open`.

        Raises:
            EngineError: There is no GPU or no CUDA provider, it refuses the model or an option, no
                CUDA graph can be captured of it, or the options ask for another float precision
                than float32: precision is in the graph.
            ModelError: The file does not exist.
        """
        chosen = options or EngineOptions()
        if chosen.float_precision != "f32":
            raise EngineError(
                f"float_precision {chosen.float_precision} is not offered",
                where=self.name,
                fix="use 'f32' and compile the model with --precision fp16",
            )
        own = own_options(CudaOptions, chosen.engine, self.name)
        _load()
        opening = partial(self._open, model, chosen, own)
        if own.graph and not chosen.profile:
            return GraphSession(opening)
        return opening(graph=False)

    def _open(
        self,
        model: Path | bytes,
        options: EngineOptions,
        own: CudaOptions,
        *,
        graph: bool,
        sizes: Mapping[str, int] | None = None,
    ) -> OrtSession:
        """Open a session that captures graphs or not, with dynamic axes fixed by name."""
        ort_options = session_options(options.threads)
        for name, size in (sizes or {}).items():
            ort_options.add_free_dimension_override_by_name(name, size)
        return OrtSession(
            model,
            ort_options,
            engine=self.name,
            providers=[(_PROVIDER, own.provider_options(graph=graph)), "CPUExecutionProvider"],
            profile=options.profile,
            device="cuda",
            captures=graph,
        )


def _load() -> Any:
    """Import onnxruntime with its CUDA provider ready.

    Raises:
        EngineError: onnxruntime is missing or built without CUDA, or there is no GPU.
    """
    onnxruntime = load_onnxruntime()
    if _PROVIDER not in onnxruntime.get_available_providers():
        raise EngineError(
            "the onnxruntime installed here has no CUDA provider",
            where="onnxruntime-cuda",
            fix="pip uninstall onnxruntime, then pip install 'qgraph[cuda]'",
        )
    if gpus() == 0:
        raise EngineError(
            "no NVIDIA GPU is visible",
            where="onnxruntime-cuda",
            fix="check nvidia-smi and CUDA_VISIBLE_DEVICES",
        )
    preload(onnxruntime)
    return onnxruntime


@cache
def preload(onnxruntime: Any) -> None:
    """Load CUDA's libraries from the nvidia-* wheels where the loader would not find them."""
    onnxruntime.preload_dlls()


def driver() -> Any:
    """NVIDIA's driver library, or None where there is none."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


@cache
def gpus() -> int:
    """How many NVIDIA GPUs the driver shows to this process."""
    found, count = driver(), ctypes.c_int(0)
    if found is None or found.cuInit(0) or found.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def used_memory() -> int | None:
    """Bytes in use on the first GPU, by all processes; None where the driver does not tell.

    ONNX Runtime keeps what it once allocated, so that after some runs this is their peak.
    """
    if not gpus():
        return None
    found, context = driver(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    # The context that CUDA's runtime, and so ONNX Runtime, works in; another would take memory.
    if found.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) or found.cuCtxSetCurrent(context):
        return None
    if found.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)):
        return None
    return total.value - free.value
