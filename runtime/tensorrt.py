"""Backend 'tensorrt': builds engines with NVIDIA TensorRT or TensorRT-RTX.

Both have one Python API under two names. The network is strongly typed: every precision stands in
the model, as casts and Q/DQ. TensorRT-RTX's builder needs no GPU, so parsing and building are a
test of a model on any machine. Running an engine is not built yet.
"""

import importlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from qgraph.errors import EngineError, ModelError
from qgraph.runtime.backend import EngineOptions, Session
from qgraph.runtime.builder import Built

# Tried in this order: TensorRT builds for the GPU in the machine, TensorRT-RTX for several kinds.
MODULES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_INSTALL = "run `pip install 'qgraph[tensorrt]'`, or install TensorRT from NVIDIA"
# More errors than these are counted; they mostly follow from the first.
_SHOWN = 3


class TensorRt:
    """TensorRT, or TensorRT-RTX where that is installed instead."""

    name = "tensorrt"

    def unavailable(self) -> str | None:
        """Why engines can't run here: always something, until running them is built."""
        reason = self.cannot_build()
        if reason is not None:
            return reason
        return str(_cant_run())

    def cannot_build(self) -> str | None:
        """None when engines can be built here, else the reason and what to do."""
        try:
            load_tensorrt()
        except EngineError as error:
            return str(error)
        return None

    def open(self, model: Path | bytes, options: EngineOptions | None = None) -> Session:
        """Refuse: running engines is not built yet.

        Raises:
            EngineError: Always.
        """
        load_tensorrt()
        raise _cant_run()

    def build(self, model: Path, shapes: Mapping[str, Sequence[int]]) -> Built:
        """Parse a model and build an engine of it.

        Args:
            model: ONNX file; external data lies beside it.
            shapes: By input name, the shape that dynamic axes are built for.

        Raises:
            EngineError: TensorRT is missing, refuses the model (the nodes are named), or an input's
                shape is missing or does not fit.
            ModelError: The file does not exist.
        """
        trt, title = load_tensorrt()
        if not model.is_file():
            raise ModelError("no such file", where=str(model))
        started = time.perf_counter()
        log = error_logger(trt)
        builder = trt.Builder(log)
        if builder is None:
            raise _refused(title, log.errors)
        network = builder.create_network(network_flags(trt))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(model)):
            raise _refused(title, _parser_errors(parser) or log.errors)
        config = builder.create_builder_config()
        _set_shapes(builder, network, config, shapes)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise _refused(title, log.errors)
        seconds = time.perf_counter() - started
        return Built(bytes(engine), f"{title} {trt.__version__}", seconds, network.num_layers)


def _cant_run() -> EngineError:
    return EngineError(
        "qgraph builds engines, it does not run them yet",
        where="tensorrt",
        fix="run the artifact's model.onnx in the TensorRT of your application",
    )


def load_tensorrt() -> tuple[ModuleType, str]:
    """The module and its name for people.

    Raises:
        EngineError: None can be imported.
    """
    found = []
    for name, title in MODULES.items():
        try:
            return importlib.import_module(name), title
        except (ImportError, OSError) as error:  # a shared library may be missing
            found.append(f"{title}: {error}")
    raise EngineError(f"can't be imported ({'; '.join(found)})", where="tensorrt", fix=_INSTALL)


def network_flags(trt: ModuleType) -> int:
    """Bits of a strongly typed network, which newer versions build without being asked."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def error_logger(trt: ModuleType) -> Any:
    """A logger that keeps errors and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def _parser_errors(parser: Any) -> list[str]:
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name, operator = error.node_name(), error.node_operator()
        where = f"{operator} {name!r}: " if operator or name else ""
        lines.append(f"{where}{error.desc()}")
    return lines


def _refused(title: str, reasons: Sequence[str]) -> EngineError:
    lines = [" ".join(each.split()) for each in dict.fromkeys(reasons)] or ["it gives no reason"]
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return EngineError(
        f"{title} refuses the model: {'; '.join(lines[:_SHOWN])}{more}",
        where="tensorrt",
        fix="leave the node in float with --exclude, or choose another target",
    )


def _set_shapes(
    builder: Any, network: Any, config: Any, shapes: Mapping[str, Sequence[int]]
) -> None:
    """Build dynamic inputs for the given shapes alone.

    Raises:
        EngineError: An input's shape is missing or does not fit.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    if not any(-1 in tuple(each.shape) for each in inputs):
        return
    profile = builder.create_optimization_profile()
    for each in inputs:
        shape = tuple(shapes.get(each.name, each.shape))
        if len(shape) != len(each.shape) or any(
            length < 0 or want not in (-1, length)
            for length, want in zip(shape, each.shape, strict=True)
        ):
            raise EngineError(
                f"input {each.name!r} {list(each.shape)} can't be built for shape {list(shape)}",
                where="tensorrt",
                fix="give a shape for every dynamic axis",
            )
        profile.set_shape(each.name, shape, shape, shape)
    config.add_optimization_profile(profile)
