"""ONNX Runtime, for every engine that is reached through it: import, options, session.

ONNX Runtime's own log is switched off (severity 4): it prints warnings about harmless things to
stderr, and every failure reaches the caller as an exception anyway.
"""

import ctypes
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np

from qgraph.errors import EngineError, ModelError, UsageError, unknown_name
from qgraph.runtime.backend import ExecutedOp, TensorInfo, available_cores
from qgraph.runtime.executed import read_profile
from qgraph.runtime.tensors import EXTENSION_DTYPES, Array, check_feeds, numpy_dtype

_SILENT = 4
_SHORT_NAMES = {"float": "float32", "double": "float64"}
_INSTALL = (
    "run `pip install 'qgraph[cpu]'`; if onnxruntime and onnxruntime-gpu are both installed they "
    "overwrite each other's files: uninstall both, then install one"
)


def load_onnxruntime() -> ModuleType:
    """Import onnxruntime and silence its log.

    Raises:
        EngineError: It is not installed, or its files are damaged.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"onnxruntime can't be imported ({error})", fix=_INSTALL) from error
    # Uninstalling one of two clashing wheels leaves a folder that imports as an empty namespace.
    if not hasattr(onnxruntime, "InferenceSession"):
        raise EngineError("onnxruntime is installed without its main files", fix=_INSTALL)
    onnxruntime.set_default_logger_severity(_SILENT)
    module: ModuleType = onnxruntime
    return module


def session_options(threads: int = 0) -> Any:
    """Silent `onnxruntime.SessionOptions` for `threads` threads; 0 means all available cores."""
    options = load_onnxruntime().SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads or available_cores()
    return options


def error_line(error: Exception) -> str:
    """The first line of ONNX Runtime's message, without its numeric prefix."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", lines[0])


def _name(provider: str | tuple[str, dict[str, str]]) -> str:
    return provider if isinstance(provider, str) else provider[0]


def type_from_ort(text: str) -> str:
    """ONNX type name from ONNX Runtime's spelling: 'tensor(float)' gives 'float32'."""
    name = re.sub(r"tensor\((\w+)\)", r"\1", text)
    return re.sub(r"\b(float|double)\b", lambda match: _SHORT_NAMES[match[0]], name)


class OrtSession:
    """A model opened in ONNX Runtime; satisfies `qgraph.runtime.backend.Session`."""

    def __init__(
        self,
        model: Path | bytes,
        options: Any,
        *,
        engine: str,
        providers: Sequence[str | tuple[str, dict[str, str]]] | None = None,
        profile: bool = False,
    ) -> None:
        """Open the model.

        Args:
            model: Path, or a serialized model of less than 2 GB without external data.
            options: From `session_options`; the session owns it from here on.
            engine: Name that results and errors show.
            providers: Execution providers, with their options where needed; None takes those set
                in `options`.
            profile: Record what runs, for `executed`.

        Raises:
            ModelError: The file does not exist.
            EngineError: ONNX Runtime refuses the model (carries the first line of its message),
                or goes on without the first provider.
        """
        if isinstance(model, Path) and not model.is_file():
            raise ModelError("no such file", where=str(model), fix="check the path")
        onnxruntime = load_onnxruntime()
        self.engine = engine
        self._lock = threading.Lock()
        self._profile_dir = TemporaryDirectory(prefix="qgraph-profile-") if profile else None
        self._executed: tuple[ExecutedOp, ...] | None = None
        if self._profile_dir:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._profile_dir.name) / "ort")
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        source = str(model) if isinstance(model, Path) else model
        try:
            # Its fallback would print to stdout and go on with another provider than asked for.
            session = onnxruntime.InferenceSession(
                source, options, providers=providers, enable_fallback=0
            )
        except Exception as error:
            self._remove_profile()
            raise EngineError(f"refuses the model: {error_line(error)}", where=engine) from error
        self._session: Any = session
        if providers and _name(providers[0]) not in session.get_providers():
            self._remove_profile()
            raise EngineError(
                f"{_name(providers[0])} could not be started: its libraries are missing or do not "
                "match the driver",
                where=engine,
                fix="check that the CUDA and cuDNN wheels match onnxruntime's version",
            )
        self.inputs = _infos(session.get_inputs())
        self.outputs = _infos(session.get_outputs())
        self._optional = _infos(session.get_overridable_initializers())
        self._types = {info.name: info.dtype for info in (*self.inputs, *self._optional)}

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run once on arrays by input name; return the named outputs, or all of them.

        Float16, bfloat16 and float8 come and go as `ml_dtypes` or numpy arrays, strings as
        object arrays. Initializers that the model lets callers override may be fed too.

        Raises:
            DataError: An input is missing, unknown, or has the wrong dtype or shape.
            UsageError: An output name is unknown.
            EngineError: The run fails, an output is a sequence or map, or the session is closed.
        """
        session = self._opened()
        arrays = check_feeds(self.inputs, feeds, self._optional)
        types = self._output_types(outputs)
        try:
            if any(dtype in EXTENSION_DTYPES for dtype in types.values()):
                return self._run_values(session, arrays, types)
            values = session.run(list(types), self._mixed(arrays))
        except Exception as error:
            raise EngineError(
                f"failed while running: {error_line(error)}", where=self.engine
            ) from (error)
        return dict(zip(types, values, strict=True))

    def executed(self) -> tuple[ExecutedOp, ...]:
        """Kernels that ran since opening, in order of first execution; ends the profile.

        Nodes that a plugin provider compiled into one kernel are listed after it, without time.

        Raises:
            UsageError: The session was opened without `profile=True`.
            EngineError: The session was closed first.
        """
        with self._lock:
            if self._executed is None:
                session = self._opened()
                if self._profile_dir is None:
                    raise UsageError(
                        "the session keeps no profile",
                        where=self.engine,
                        fix="open it with EngineOptions(profile=True)",
                    )
                kernels = read_profile(Path(session.end_profiling()))
                self._executed = (*kernels, *_compiled_nodes(session))
                self._remove_profile()
            return self._executed

    def close(self) -> None:
        """Release the engine's memory and threads once runs in flight have ended."""
        with self._lock:
            self._session = None
            self._remove_profile()

    def __enter__(self) -> Self:
        """Return the session."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the session."""
        self.close()

    def _opened(self) -> Any:
        session = self._session
        if session is None:
            raise EngineError("the session is closed", where=self.engine, fix="open it again")
        return session

    def _remove_profile(self) -> None:
        if self._profile_dir is not None:
            self._profile_dir.cleanup()

    def _output_types(self, names: Sequence[str] | None) -> dict[str, str]:
        known = {info.name: info.dtype for info in self.outputs}
        chosen = list(known) if names is None else list(dict.fromkeys(names))
        for name in chosen:
            if name not in known:
                raise unknown_name("output", name, known)
            if "(" in known[name]:
                raise EngineError(
                    f"output {name!r} is a {known[name]}, which is not supported",
                    where=self.engine,
                    fix="ask for the tensor outputs by name",
                )
        return {name: known[name] for name in chosen}

    def _mixed(self, arrays: dict[str, Array]) -> dict[str, Any]:
        """Arrays, wrapped only where numpy's type can't say what they are."""
        return {
            name: self._value(name, array) if self._types[name] in EXTENSION_DTYPES else array
            for name, array in arrays.items()
        }

    def _value(self, name: str, array: Array) -> Any:
        ort_value = load_onnxruntime().OrtValue
        dtype = self._types[name]
        if dtype not in EXTENSION_DTYPES:
            return ort_value.ortvalue_from_numpy(array)
        from onnx import TensorProto

        bits = array.view(np.dtype(f"u{array.itemsize}"))
        code = TensorProto.DataType.Value(dtype.upper())
        return ort_value.ortvalue_from_numpy_with_onnx_type(bits, code)

    def _run_values(
        self, session: Any, arrays: dict[str, Array], types: dict[str, str]
    ) -> dict[str, Array]:
        """Run with outputs that ONNX Runtime can't turn into numpy arrays."""
        # `feeds` only borrows the arrays' memory: they must live until the run ends.
        feeds = {name: self._value(name, array) for name, array in arrays.items()}
        values = session.run_with_ort_values(list(types), feeds)
        pairs = zip(types.items(), values, strict=True)
        return {name: _copy_value(value, dtype) for (name, dtype), value in pairs}


def _infos(metas: Sequence[Any]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(m.name, type_from_ort(m.type), tuple(m.shape)) for m in metas)


def _copy_value(value: Any, dtype: str) -> Array:
    if dtype not in EXTENSION_DTYPES:
        return np.array(value.numpy())
    size = value.tensor_size_in_bytes()
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(bytearray(raw), dtype=numpy_dtype(dtype)).reshape(value.shape())


def _compiled_nodes(session: Any) -> list[ExecutedOp]:
    """Nodes handed to a plugin provider, which hides from the profile what it made of them."""
    return [
        ExecutedOp(node.name, node.op_type, part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != "CPUExecutionProvider"
        for node in part.get_nodes()
    ]
