"""Backend 'onnxruntime-cpu': ONNX Runtime's own CPU provider at its full optimization level."""

from pathlib import Path

from qgraph.errors import EngineError, QGraphError
from qgraph.runtime.backend import EngineOptions
from qgraph.runtime.options import no_options
from qgraph.runtime.ort_session import OrtSession, load_onnxruntime, session_options

# On x86 without VNNI (most AMD before Zen 4, Intel before Cascade Lake) its kernels add two products of
# uint8 and int8 in 16 bits, which overflow: MobileNetV2 in int8 then answers with 6.7 dB in place of
# 13.9. With this, int8 weights become uint8 there, which have exact kernels, 1.3 times as slow.
# Elsewhere it changes nothing. Source: onnxruntime_session_options_config_keys.h.
EXACT_PRODUCTS = "session.x64quantprecision"


class OnnxRuntimeCpu:
    """ONNX Runtime on the CPU; float parts run in float32, whatever the machine."""

    name = "onnxruntime-cpu"

    def unavailable(self) -> str | None:
        """None when onnxruntime can be imported, else the reason and what to install."""
        try:
            load_onnxruntime()
        except QGraphError as error:
            return str(error)
        return None

    def open(self, model: Path | bytes, options: EngineOptions | None = None) -> OrtSession:
        """Open a model; see `qgraph.runtime.backend.Backend.open`.

        Raises:
            EngineError: onnxruntime is missing or refuses the model, or the options ask for
                another float precision than float32.
            ModelError: The file does not exist.
        """
        chosen = options or EngineOptions()
        no_options(chosen, self.name)
        if chosen.float_precision != "f32":
            raise EngineError(
                f"float_precision {chosen.float_precision} is not offered",
                where=self.name,
                fix="use 'f32', or the backend 'openvino'",
            )
        ort_options = session_options(chosen.threads)
        ort_options.add_session_config_entry(EXACT_PRODUCTS, "1")
        return OrtSession(
            model,
            ort_options,
            engine=self.name,
            providers=["CPUExecutionProvider"],
            profile=chosen.profile,
        )
