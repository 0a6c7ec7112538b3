"""Backend 'onnxruntime-cpu': ONNX Runtime's own CPU provider at its full optimization level."""

from pathlib import Path

from qgraph.errors import EngineError, QGraphError
from qgraph.runtime.backend import EngineOptions
from qgraph.runtime.exact_products import EXACT_PRODUCTS, overflows
from qgraph.runtime.options import no_options
from qgraph.runtime.ort_session import OrtSession, load_onnxruntime, session_options

# The fusion of Q/DQ into kernels in integers; without it they compute in float.
_FLOATS = "session.disable_quant_qdq"


class OnnxRuntimeCpu:
    """ONNX Runtime on the CPU; float parts run in float32, whatever the machine.

    Products of integers are exact on every CPU, see `qgraph.runtime.exact_products`: MobileNetV2 in
    int8 would answer with 6.7 dB in place of 13.9 on one with AVX2 alone.
    """

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
        if not overflows():
            return self._open(model, chosen)
        try:
            return self._open(model, chosen, EXACT_PRODUCTS)
        except EngineError:
            # Where weights are shared, onnxruntime's rewrite to exact products fails: then in float.
            return self._open(model, chosen, _FLOATS)

    def _open(self, model: Path | bytes, options: EngineOptions, entry: str = "") -> OrtSession:
        ort_options = session_options(options.threads)
        if entry:
            ort_options.add_session_config_entry(entry, "1")
        return OrtSession(
            model,
            ort_options,
            engine=self.name,
            providers=["CPUExecutionProvider"],
            profile=options.profile,
        )
