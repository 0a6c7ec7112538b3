"""Backend 'onnxruntime-cuda': ONNX Runtime's CUDA provider, with its CPU provider behind it.

TF32 is off: the CUDA provider would otherwise multiply float32 with ten bits of mantissa. Algorithms
for convolutions are chosen by cuDNN's rules: trying them all takes seconds for every new shape.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

from qgraph.errors import EngineError, QGraphError
from qgraph.runtime.backend import EngineOptions
from qgraph.runtime.ort_session import OrtSession, load_onnxruntime, session_options

_PROVIDER = "CUDAExecutionProvider"
_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}


class OnnxRuntimeCuda:
    """ONNX Runtime on an NVIDIA GPU; what CUDA has no kernel for runs on the CPU."""

    name = "onnxruntime-cuda"

    def unavailable(self) -> str | None:
        """None when there is a GPU and onnxruntime-gpu can use it, else the reason."""
        try:
            _load()
        except QGraphError as error:
            return str(error)
        return None

    def open(self, model: Path | bytes, options: EngineOptions | None = None) -> OrtSession:
        """Open a model; see `qgraph.runtime.backend.Backend.open`.

        Raises:
            EngineError: There is no GPU or no CUDA provider, it refuses the model, or the options
                ask for another float precision than float32: precision is in the graph.
            ModelError: The file does not exist.
        """
        chosen = options or EngineOptions()
        if chosen.float_precision != "f32":
            raise EngineError(
                f"float_precision {chosen.float_precision} is not offered",
                where=self.name,
                fix="use 'f32' and compile the model with --precision fp16",
            )
        _load()
        ort_options = session_options(chosen.threads)
        return OrtSession(
            model,
            ort_options,
            engine=self.name,
            providers=[(_PROVIDER, _OPTIONS), "CPUExecutionProvider"],
            profile=chosen.profile,
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
    _preload(onnxruntime)
    return onnxruntime


@cache
def _preload(onnxruntime: Any) -> None:
    """Load CUDA's libraries from the nvidia-* wheels where the loader would not find them."""
    onnxruntime.preload_dlls()


@cache
def gpus() -> int:
    """How many NVIDIA GPUs the driver shows to this process."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int(0)
        if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0
