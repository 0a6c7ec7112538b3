"""Backend 'onnxruntime-tensorrt': ONNX Runtime's TensorRT provider, with CUDA and the CPU behind it.

The provider builds engines when a model is first run with a shape, which takes seconds to minutes, and keeps
them, with the times of the kernels it tried, in a folder beside the model (`<model>.engines`). Where that
can't be written nothing is kept.

Its network is weakly typed: TensorRT may compute in float16 or int8 only where it is allowed to. Options
(`EngineOptions.engine`) are the fields of `TensorRtOptions`.
"""

import ctypes
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from qgraph.errors import EngineError, QGraphError
from qgraph.runtime.backend import EngineOptions
from qgraph.runtime.cuda_ways import CudaOptions
from qgraph.runtime.onnxruntime_cuda import gpus, preload, used_memory
from qgraph.runtime.options import own_options
from qgraph.runtime.ort_session import OrtSession, load_onnxruntime, session_options

_PROVIDER = "TensorrtExecutionProvider"
_LIBRARIES = ("libnvinfer.so.10", "nvinfer_10.dll")


@dataclass(frozen=True)
class TensorRtOptions:
    """What the TensorRT provider can be told.

    Attributes:
        fp16: Let it compute in float16.
        int8: Let it compute in int8, where Q/DQ says so.
        keep: Keep engines beside the model.
        level: Builder's optimization level, 0 (fast to build) to 5.
        workspace_mb: Memory for tactics, MB; 0 for as much as there is.
        min_shapes: Smallest shapes of dynamic inputs, as in `x:1x3x224x224,m:1x8`; then `opt_shapes`
            and `max_shapes` are needed too. Without them, engines are built for what comes.
        opt_shapes: Shapes that engines are tuned for.
        max_shapes: Largest shapes.
    """

    fp16: bool = False
    int8: bool = False
    keep: bool = True
    level: int = 3
    workspace_mb: int = 0
    min_shapes: str = ""
    opt_shapes: str = ""
    max_shapes: str = ""

    def provider(self, cache: Path | None) -> tuple[str, dict[str, str]]:
        """Return the provider with its options as ONNX Runtime takes them."""
        found = {
            "trt_fp16_enable": str(int(self.fp16)),
            "trt_int8_enable": str(int(self.int8)),
            "trt_builder_optimization_level": str(self.level),
        }
        if self.workspace_mb:
            found["trt_max_workspace_size"] = str(self.workspace_mb << 20)
        if cache is not None:
            found |= {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(cache),
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": str(cache),
            }
        return _PROVIDER, found | shape_options(
            "trt_profile", self.min_shapes, self.opt_shapes, self.max_shapes
        )


class OnnxRuntimeTensorRt:
    """TensorRT inside ONNX Runtime; what it does not take runs in CUDA, or on the CPU."""

    name = "onnxruntime-tensorrt"
    provider = _PROVIDER

    def unavailable(self) -> str | None:
        """None when there is a GPU and onnxruntime-gpu finds TensorRT, else the reason."""
        try:
            self._load()
        except QGraphError as error:
            return str(error)
        return None

    def variants(
        self, precision: str, operators: Collection[str] = (), asked: BaseModel | None = None
    ) -> Mapping[str, EngineOptions]:
        """What the model's precision needs; with int8, float parts in float16 are tried too."""
        half = precision in ("fp16", "int4")
        plain = EngineOptions(engine=_changed(TensorRtOptions(fp16=half, int8=precision == "int8")))
        if precision != "int8":
            return {"": plain}
        both = EngineOptions(engine=_changed(TensorRtOptions(fp16=True, int8=True)))
        return {"": plain, "rest in fp16": both}

    def device_memory(self) -> int | None:
        """Bytes in use on the first GPU."""
        return used_memory()

    def open(self, model: Path | bytes, options: EngineOptions | None = None) -> OrtSession:
        """Open a model; see `qgraph.runtime.backend.Backend.open`.

        Raises:
            EngineError: There is no GPU, no provider or no TensorRT, or it refuses the model or an
                option.
            ModelError: The file does not exist.
        """
        chosen = options or EngineOptions()
        own = own_options(TensorRtOptions, chosen.engine, self.name)
        if chosen.float_precision != "f32":
            raise EngineError(
                f"float_precision {chosen.float_precision} is not offered",
                where=self.name,
                fix="use 'f32', and the engine's option fp16=true",
            )
        self._load()
        cuda = ("CUDAExecutionProvider", CudaOptions().provider_options(graph=False))
        return OrtSession(
            model,
            session_options(chosen.threads),
            engine=self.name,
            providers=[own.provider(kept(model, own.keep)), cuda, "CPUExecutionProvider"],
            profile=chosen.profile,
            device="cuda",
        )

    def _load(self) -> None:
        """See that the provider can start.

        Raises:
            EngineError: Something is missing.
        """
        onnxruntime = load_onnxruntime()
        if _PROVIDER not in onnxruntime.get_available_providers():
            raise EngineError(
                "the onnxruntime installed here has no TensorRT provider",
                where=self.name,
                fix="pip uninstall onnxruntime, then pip install 'qgraph[cuda]'",
            )
        if gpus() == 0:
            raise EngineError(
                "no NVIDIA GPU is visible",
                where=self.name,
                fix="check nvidia-smi and CUDA_VISIBLE_DEVICES",
            )
        preload(onnxruntime)
        if not _tensorrt_is_there():
            raise EngineError(
                f"TensorRT's library {_LIBRARIES[0]} can't be loaded",
                where=self.name,
                fix="install TensorRT 10 from NVIDIA's index (pip install tensorrt-cu13), or use the "
                "backend 'onnxruntime-tensorrt-rtx'",
            )


def kept(model: Path | bytes, wanted: bool) -> Path | None:
    """The folder beside a model where engines are kept, made if need be; None to keep none."""
    if not wanted or isinstance(model, bytes):
        return None
    folder = model.with_name(f"{model.name}.engines")
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def shape_options(prefix: str, least: str, best: str, most: str) -> dict[str, str]:
    """A provider's options for the shapes of dynamic inputs.

    Raises:
        EngineError: Some of the three are given and others are not.
    """
    given = {"min": least, "opt": best, "max": most}
    if not any(given.values()):
        return {}
    if missing := [f"{key}_shapes" for key, text in given.items() if not text]:
        raise EngineError(f"{', '.join(missing)} are missing", fix="give all three, or none")
    return {f"{prefix}_{key}_shapes": text for key, text in given.items()}


def _changed(options: TensorRtOptions) -> dict[str, Any]:
    plain = asdict(TensorRtOptions())
    return {key: value for key, value in asdict(options).items() if value != plain[key]}


def _tensorrt_is_there() -> bool:
    """Whether TensorRT's library can be loaded, from its wheel or the system."""
    try:
        import tensorrt  # noqa: F401
    except (ImportError, OSError):
        pass
    for name in _LIBRARIES:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False
