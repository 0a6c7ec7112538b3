"""Backend 'onnxruntime-tensorrt-rtx': TensorRT-RTX as a plugin provider of ONNX Runtime.

For GPUs of compute capability 8.0, 8.6, 8.9 and 12.x, which H100 and H200 (9.0) are not among. The network
is strongly typed: every precision stands in the model. Kernels are compiled on the machine and
kept in a folder beside the model (`<model>.engines`). Options (`EngineOptions.engine`) are the fields
of `TensorRtRtxOptions`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgraph.errors import EngineError, QGraphError
from qgraph.runtime.backend import EngineOptions
from qgraph.runtime.onnxruntime_cuda import used_memory
from qgraph.runtime.onnxruntime_tensorrt import kept, shape_options
from qgraph.runtime.options import own_options
from qgraph.runtime.ort_session import OrtSession, session_options
from qgraph.runtime.plugin import plugin_devices

_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"


@dataclass(frozen=True)
class TensorRtRtxOptions:
    """What the plugin can be told.

    Attributes:
        graph: Let it capture and replay CUDA graphs.
        keep: Keep compiled kernels beside the model.
        workspace_mb: Memory for building, MB; 0 for as much as there is.
        min_shapes: Smallest shapes of dynamic inputs, as in `x:1x3x224x224,m:1x8`; then `opt_shapes`
            and `max_shapes` are needed too. Without them the plugin infers them.
        opt_shapes: Shapes that engines are tuned for.
        max_shapes: Largest shapes.
    """

    graph: bool = False
    keep: bool = True
    workspace_mb: int = 0
    min_shapes: str = ""
    opt_shapes: str = ""
    max_shapes: str = ""

    def provider(self, cache: Path | None) -> dict[str, str]:
        """Return the options as the plugin takes them: its tensorrt_rtx_provider_options.h."""
        found = {"enable_cuda_graph": str(int(self.graph))}
        if self.workspace_mb:
            found["nv_max_workspace_size"] = str(self.workspace_mb << 20)
        if cache is not None:
            found["nv_runtime_cache_path"] = str(cache)
        return found | shape_options(
            "nv_profile", self.min_shapes, self.opt_shapes, self.max_shapes
        )


class OnnxRuntimeTensorRtRtx:
    """TensorRT-RTX inside ONNX Runtime, with its CPU provider for nodes that it refuses."""

    name = "onnxruntime-tensorrt-rtx"
    provider = "NvTensorRTRTXExecutionProvider"

    def unavailable(self) -> str | None:
        """None when the plugin offers a GPU, else the reason and what to do."""
        try:
            self._devices()
        except QGraphError as error:
            return str(error)
        return None

    def device_memory(self) -> int | None:
        """Bytes in use on the first GPU."""
        return used_memory()

    def open(self, model: Path | bytes, options: EngineOptions | None = None) -> OrtSession:
        """Open a model; see `qgraph.runtime.backend.Backend.open`.

        Raises:
            EngineError: The plugin is missing, offers no GPU, or refuses the model or an option.
            ModelError: The file does not exist.
        """
        chosen = options or EngineOptions()
        own = own_options(TensorRtRtxOptions, chosen.engine, self.name)
        if chosen.float_precision != "f32":
            raise EngineError(
                f"float_precision {chosen.float_precision} is not offered",
                where=self.name,
                fix="use 'f32': precision is in the model",
            )
        devices = self._devices()
        ort_options = session_options(chosen.threads)
        ort_options.add_provider_for_devices(devices, own.provider(kept(model, own.keep)))
        return OrtSession(model, ort_options, engine=self.name, profile=chosen.profile)

    def _devices(self) -> list[Any]:
        """The first GPU that the plugin offers.

        Raises:
            EngineError: The plugin is missing, can't be loaded, or offers none.
        """
        found = plugin_devices(
            _PACKAGE,
            self.name,
            "run `pip install 'qgraph[cpu,tensorrt-ep]'` (instead of qgraph[cuda])",
        )
        if not found:
            raise EngineError(
                "the plugin offers no GPU: it serves compute capability 8.0, 8.6, 8.9 and 12.x",
                where=self.name,
                fix="use the target cuda on other GPUs",
            )
        return found[:1]
