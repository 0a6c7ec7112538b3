"""Backend 'tensorrt': builds engines with TensorRT or TensorRT-RTX and opens them.

The network is strongly typed: every precision stands in the model, as casts and Q/DQ. TensorRT-RTX's
builder needs no GPU, so parsing and building are a test of a model on any machine.
"""

from pathlib import Path

from qgraph.errors import EngineError
from qgraph.runtime.backend import EngineOptions, Session
from qgraph.runtime.builder import BuildRequest, Built
from qgraph.runtime.tensorrt.build import build_engine
from qgraph.runtime.tensorrt.device import device
from qgraph.runtime.tensorrt.library import load_library
from qgraph.runtime.tensorrt.plan import write_plan


class TensorRt:
    """TensorRT, or TensorRT-RTX where that is installed instead."""

    name = "tensorrt"

    def unavailable(self) -> str | None:
        """Why engines can't run here, or None."""
        from qgraph.runtime.tensorrt.session import cant_run

        reason = self.cannot_build()
        return cant_run(load_library()) if reason is None else reason

    def cannot_build(self) -> str | None:
        """None when engines can be built here, else the reason and what to do."""
        try:
            library = load_library()
        except EngineError as error:
            return str(error)
        if not library.capabilities and device() is None:
            return f"{library} builds engines where there is an NVIDIA GPU, and none is visible"
        return None

    def open(self, model: Path | bytes, options: EngineOptions | None = None) -> Session:
        """Open the engine beside the model, or one built of the model now.

        Raises:
            EngineError: Engines can't run here, the engine is of another machine, or the library
                refuses the model.
            ModelError: The file does not exist.
        """
        from qgraph.runtime.tensorrt.session import open_session

        return open_session(load_library(), model, options or EngineOptions())

    def build(self, model: Path, request: BuildRequest | None = None) -> Built:
        """Parse a model and build an engine of it; see `qgraph.runtime.tensorrt.build`.

        Raises:
            EngineError: TensorRT is missing, refuses the model (the nodes are named), lacks an
                option, or an input's shape is missing or does not fit.
            NotBuiltError: Its parser takes the model, its builder does not.
            ModelError: The file does not exist.
        """
        return build_engine(load_library(), model, request or BuildRequest())

    def write(self, built: Built, model: Path) -> list[Path]:
        """Write `engine.plan` and `engine.json` beside the model."""
        return write_plan(built, model)
