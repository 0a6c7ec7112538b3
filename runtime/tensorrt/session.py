"""Runs engines: named arrays in, named arrays out. Needs a GPU and CuPy for its memory.

Nothing here has run on hardware yet: see docs/tensorrt.md.
"""

import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from qgraph.errors import DataError, EngineError, UsageError, unknown_name
from qgraph.runtime.backend import EngineOptions, ExecutedOp, TensorInfo, format_shape
from qgraph.runtime.builder import BuildRequest
from qgraph.runtime.layers import Layer
from qgraph.runtime.session import SessionBase
from qgraph.runtime.tensorrt.build import build_engine
from qgraph.runtime.tensorrt.device import device
from qgraph.runtime.tensorrt.layers import parse_layers
from qgraph.runtime.tensorrt.library import Library
from qgraph.runtime.tensorrt.options import spell
from qgraph.runtime.tensorrt.plan import plan_of, read_plan
from qgraph.runtime.tensors import Array, check_feeds, numpy_dtype

_ENGINE = "tensorrt"
_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "FP8": "float8e4m3fn",
}


def cant_run(library: Library) -> str | None:
    """Say why no engine of this library runs here, or None."""
    here = device()
    if here is None:
        return f"{library} is installed, and no NVIDIA GPU is visible to run its engines"
    if library.capabilities and here.capability not in library.capabilities:
        listed = ", ".join(library.capabilities)
        return (
            f"{library.title} runs on compute capability {listed}, not on {here.capability} "
            f"({here.name}); install TensorRT"
        )
    try:
        import cupy  # noqa: F401
    except ImportError:
        return "running engines needs CuPy; run `pip install cupy-cuda13x`"
    return None


def open_session(library: Library, model: Path | bytes, options: EngineOptions) -> "EngineSession":
    """Open the engine beside a model, or one built of the model now.

    Raises:
        EngineError: No engine runs here, this one does not, or the model is refused.
        ModelError: The file does not exist.
    """
    if options.float_precision != "f32":
        raise EngineError(
            f"float_precision {options.float_precision} is not offered",
            where=_ENGINE,
            fix="use 'f32' and compile the model with --precision fp16",
        )
    with ExitStack() as stack:
        if isinstance(model, bytes):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qgraph-trt-")))
            path = folder / "model.onnx"
            path.write_bytes(model)
        else:
            path = model
        found = plan_of(path) if path.is_file() else None
        if found is not None:
            engine = read_plan(path, found, library, device())
        reason = cant_run(library)
        if reason is not None:
            raise EngineError(reason, where=_ENGINE)
        if found is None:
            engine = build_engine(library, path, BuildRequest()).engine
    return EngineSession(library, engine, profile=options.profile)


class EngineSession(SessionBase):
    """An engine with one execution context; satisfies `qgraph.runtime.backend.Session`."""

    def __init__(self, library: Library, engine: bytes, *, profile: bool = False) -> None:
        """Load the engine onto the GPU.

        Raises:
            EngineError: The library refuses it.
        """
        import cupy

        trt = library.module
        self._cupy, self._trt = cupy, trt
        self._lock = threading.Lock()
        self._log = library.logger()
        self._runtime = trt.Runtime(self._log)
        loaded: Any = self._runtime.deserialize_cuda_engine(engine) if self._runtime else None
        context = loaded.create_execution_context() if loaded is not None else None
        if context is None:
            reasons = "; ".join(self._log.errors[:2]) or "it gives no reason"
            raise EngineError(f"{library} can't load the engine: {reasons}", where=_ENGINE)
        self._engine, self._context = loaded, context
        self._stream = cupy.cuda.Stream(non_blocking=True)
        names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
        mode = trt.TensorIOMode.INPUT
        self._reads = [name for name in names if loaded.get_tensor_mode(name) == mode]
        inputs = [self._info(name) for name in self._reads]
        outputs = [self._info(name) for name in names if name not in self._reads]
        super().__init__(_ENGINE, inputs, outputs)
        self._profile = 0
        self._times = _attach_profiler(trt, context) if profile else None

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run once on arrays by input name; return the named outputs, or all of them.

        Raises:
            DataError: An input is missing, unknown, has the wrong dtype, or a shape that no
                profile of the engine has.
            UsageError: An output name is unknown.
            EngineError: The run fails, or the session is closed.
        """
        arrays = check_feeds(self.inputs, feeds)
        wanted = [info.name for info in self.outputs] if outputs is None else list(outputs)
        for name in wanted:
            if name not in {info.name for info in self.outputs}:
                raise unknown_name("output", name, [info.name for info in self.outputs])
        with self._running(), self._lock:
            self._choose_profile(self._context, arrays)
            with self._stream:
                return self._execute(self._context, arrays, wanted)

    def layers(self) -> list[Layer]:
        """Return the engine's layers, with times where the session keeps a profile."""
        with self._running(), self._lock:
            inspector = self._engine.create_engine_inspector()
            inspector.execution_context = self._context
            text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        times = {name: 1000 * median(runs) for name, runs in (self._times or {}).items()}
        return parse_layers(text, times)

    def executed(self) -> tuple[ExecutedOp, ...]:
        """Layers of the engine with their times.

        Raises:
            UsageError: The session was opened without `profile=True`.
        """
        if self._times is None:
            raise UsageError(
                "the session keeps no profile",
                where=_ENGINE,
                fix="open it with EngineOptions(profile=True)",
            )
        return tuple(
            ExecutedOp(each.name, each.kind, "TensorRT", each.reads, each.writes, each.time_us)
            for each in self.layers()
        )

    def _release(self) -> None:
        self._context = self._engine = self._runtime = None

    def _info(self, name: str) -> TensorInfo:
        kind = self._engine.get_tensor_dtype(name).name
        shape = tuple(None if n < 0 else int(n) for n in self._engine.get_tensor_shape(name))
        return TensorInfo(name, _TYPES.get(kind, kind.lower()), shape)

    def _choose_profile(self, context: Any, arrays: Mapping[str, Array]) -> None:
        """Switch to the first profile that takes the shapes.

        Raises:
            DataError: None does.
        """
        for index in range(self._engine.num_optimization_profiles):
            ranges = {n: self._engine.get_tensor_profile_shape(n, index) for n in arrays}
            if all(_within(arrays[name].shape, found) for name, found in ranges.items()):
                if index != self._profile:
                    context.set_optimization_profile_async(index, self._stream.ptr)
                    self._profile = index
                break
        else:
            name = next(n for n in arrays if not _within(arrays[n].shape, ranges[n]))
            least, _, greatest = (tuple(each) for each in ranges[name])
            raise DataError(
                f"shape {format_shape(arrays[name].shape)} is outside of the engine's profiles, the "
                f"last of which goes from {spell(least)} to {spell(greatest)}",
                where=f"input {name!r}",
                fix="compile with --shapes that include it",
            )
        for name, array in arrays.items():
            context.set_input_shape(name, array.shape)

    def _execute(
        self, context: Any, arrays: Mapping[str, Array], wanted: Sequence[str]
    ) -> dict[str, Array]:
        buffers: dict[str, Any] = {}
        for name, array in arrays.items():
            buffers[name] = self._buffer(context, name, array.nbytes)
            buffers[name][: array.nbytes].set(array.reshape(-1).view(np.uint8), self._stream)
        shapes = {}
        for info in self.outputs:
            shape = tuple(context.get_tensor_shape(info.name))
            if any(length < 0 for length in shape):
                raise EngineError(
                    f"the shape of output {info.name!r} depends on data, which is not supported",
                    where=_ENGINE,
                    fix="run the artifact's model.onnx in onnxruntime",
                )
            shapes[info.name] = shape
            size = int(np.prod(shape)) * numpy_dtype(info.dtype).itemsize
            buffers[info.name] = self._buffer(context, info.name, size)
        if not context.execute_async_v3(self._stream.ptr):
            reasons = "; ".join(self._log.errors[-2:]) or "it gives no reason"
            raise EngineError(f"failed while running: {reasons}", where=_ENGINE)
        self._stream.synchronize()
        types = {info.name: numpy_dtype(info.dtype) for info in self.outputs}
        results = {}
        for name in wanted:
            size = int(np.prod(shapes[name])) * types[name].itemsize
            results[name] = buffers[name][:size].get().view(types[name]).reshape(shapes[name])
        return results

    def _buffer(self, context: Any, name: str, size: int) -> Any:
        """Return memory for a tensor; an empty one needs an address, too."""
        made = self._cupy.empty(max(size, 1), np.uint8)
        context.set_tensor_address(name, made.data.ptr)
        return made


def _within(shape: tuple[int, ...], ranges: Sequence[Any]) -> bool:
    least, _, greatest = (tuple(each) for each in ranges)
    return len(shape) == len(least) and all(
        low <= length <= high for low, length, high in zip(least, shape, greatest, strict=True)
    )


def _attach_profiler(trt: Any, context: Any) -> dict[str, list[float]]:
    """Make a context report its layers' times, in milliseconds by name."""
    times: dict[str, list[float]] = defaultdict(list)

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, name: str, milliseconds: float) -> None:
            times[name].append(milliseconds)

    context.profiler = Profiler()
    return times
