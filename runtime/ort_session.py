"""ONNX Runtime, for every engine that is reached through it: import, options, session.

ONNX Runtime's own log is switched off (severity 4): it prints warnings about harmless things to
stderr, and every failure reaches the caller as an exception anyway.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from qgraph.errors import EngineError, ModelError, UsageError, unknown_name
from qgraph.runtime.backend import DLPack, ExecutedOp, TensorInfo, available_cores
from qgraph.runtime.executed import read_profile
from qgraph.runtime.ort_bound import GRAPH_ID, NO_GRAPH, OrtBound
from qgraph.runtime.ort_values import from_feed, from_numpy, to_numpy
from qgraph.runtime.session import Running, SessionBase
from qgraph.runtime.tensors import EXTENSION_DTYPES, Array, check_feeds, check_names

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


class OrtSession(SessionBase):
    """A model opened in ONNX Runtime; satisfies `qgraph.runtime.backend.Session`.

    Attributes:
        optional: Initializers that may be fed too.
        memory: By input and output, the device whose memory it lies in: `cpu` or `cuda`.
        run_options: What a run is told, where it is not to replay a graph.
    """

    def __init__(
        self,
        model: Path | bytes,
        options: Any,
        *,
        engine: str,
        providers: Sequence[str | tuple[str, dict[str, str]]] | None = None,
        profile: bool = False,
        device: str = "cpu",
        captures: bool = False,
    ) -> None:
        """Open the model.

        Args:
            model: Path, or a serialized model of less than 2 GB without external data.
            options: From `session_options`; the session owns it from here on.
            engine: Name that results and errors show.
            providers: Execution providers, with their options where needed; None takes those set
                in `options`.
            profile: Record what runs, for `executed`.
            device: Where the first provider computes.
            captures: Whether the providers' options let runs be captured as CUDA graphs.

        Raises:
            ModelError: The file does not exist.
            EngineError: ONNX Runtime refuses the model (carries the first line of its message),
                or goes on without the first provider.
        """
        if isinstance(model, Path) and not model.is_file():
            raise ModelError("no such file", where=str(model), fix="check the path")
        onnxruntime = load_onnxruntime()
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
        super().__init__(
            engine, _infos(session.get_inputs()), _infos(session.get_outputs()), device
        )
        self.optional = _infos(session.get_overridable_initializers())
        self._types = {info.name: info.dtype for info in (*self.inputs, *self.optional)}
        self.memory = {info.name: "cpu" for info in (*self.inputs, *self.optional, *self.outputs)}
        if device != "cpu":
            self.memory |= _memory(self.inputs, session.get_input_memory_infos(), device)
            self.memory |= _memory(self.outputs, session.get_output_memory_infos(), device)
        self.run_options = self.graph_options(None) if captures else None

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run once on arrays by input name; return the named outputs, or all of them.

        Float16, bfloat16 and float8 come and go as `ml_dtypes` or numpy arrays, strings as
        object arrays. Initializers that the model lets callers override may be fed too.

        Raises:
            DataError: An input is missing, unknown, or has the wrong dtype or shape.
            UsageError: An output name is unknown.
            EngineError: The run fails, an output is a sequence or map, or the session is closed.
        """
        with self.native() as session:
            arrays = check_feeds(self.inputs, feeds, self.optional)
            types = self.output_types(outputs)
            try:
                if any(dtype in EXTENSION_DTYPES for dtype in types.values()):
                    return self._run_values(session, arrays, types)
                values = session.run(list(types), self._mixed(arrays), self.run_options)
            except Exception as error:
                raise self._failed(error) from error
            return dict(zip(types, values, strict=True))

    def run_dlpack(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, DLPack]:
        """Run once on arrays where they are; see `qgraph.runtime.backend.Session.run_dlpack`.

        Results are OrtValues, which have `numpy()` besides.

        Raises:
            DataError, UsageError, EngineError: As `run`; and where an output holds strings, or an
                array is not contiguous.
        """
        with self.native() as session:
            types = self.tensor_types(outputs)
            known = check_names(self.inputs, feeds, self.optional)
            # The binding only borrows memory: the values must live until the run ends.
            values = {name: from_feed(known[name], feed) for name, feed in feeds.items()}
            binding = session.io_binding()
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for name in types:
                binding.bind_output(name, self.memory[name])
            self.run_bound(session, binding, self.run_options)
            return dict(zip(types, binding.get_outputs(), strict=True))

    def bind(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> OrtBound:
        """Copy feeds to buffers that stay; see `qgraph.runtime.backend.Session.bind`."""
        return OrtBound(self, feeds, self.tensor_types(outputs))

    def executed(self) -> tuple[ExecutedOp, ...]:
        """Kernels that ran since opening, in order of first execution; ends the profile.

        Nodes that a plugin provider compiled into one kernel are listed after it, without time.

        Raises:
            UsageError: The session was opened without `profile=True`.
            EngineError: The session was closed first.
        """
        with self._lock:
            if self._executed is None:
                with self.native() as session:
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

    # -- for what is bound to the session ----------------------------------------------------------

    def native(self) -> Running[Any]:
        """ONNX Runtime's session, kept open while the block runs.

        Raises:
            EngineError: The session is closed.
        """
        return Running(self, self._session)

    def run_bound(self, session: Any, binding: Any, options: Any) -> None:
        """Run on a binding and wait until its outputs are there.

        Raises:
            EngineError: The run fails.
        """
        try:
            if self.device != "cpu":
                # What other libraries do to the inputs on streams of their own must be over.
                binding.synchronize_inputs()
            session.run_with_iobinding(binding, options)
            if self.device != "cpu":
                binding.synchronize_outputs()
        except Exception as error:
            raise self._failed(error) from error

    def graph_options(self, number: int | None) -> Any:
        """Run options to capture or replay the CUDA graph of that number, or None of them."""
        options = load_onnxruntime().RunOptions()
        options.add_run_config_entry(GRAPH_ID, NO_GRAPH if number is None else str(number))
        return options

    def output_types(self, names: Sequence[str] | None) -> dict[str, str]:
        """Types of the named outputs, or of all.

        Raises:
            UsageError: One is unknown.
            EngineError: One is a sequence or map.
        """
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

    def tensor_types(self, names: Sequence[str] | None) -> dict[str, str]:
        """The same where they must be tensors that other libraries can read.

        Raises:
            EngineError: One holds strings.
        """
        types = self.output_types(names)
        if text := next((name for name, dtype in types.items() if dtype == "string"), None):
            raise EngineError(
                f"output {text!r} holds strings, which have no DLPack",
                where=self.engine,
                fix="use run, or ask for other outputs by name",
            )
        return types

    def _release(self) -> None:
        self._session = None
        self._remove_profile()

    def _failed(self, error: Exception) -> EngineError:
        return EngineError(f"failed while running: {error_line(error)}", where=self.engine)

    def _remove_profile(self) -> None:
        if self._profile_dir is not None:
            self._profile_dir.cleanup()

    def _mixed(self, arrays: dict[str, Array]) -> dict[str, Any]:
        """Arrays, wrapped only where numpy's type can't say what they are."""
        return {
            name: from_numpy(self._types[name], array)
            if self._types[name] in EXTENSION_DTYPES
            else array
            for name, array in arrays.items()
        }

    def _run_values(
        self, session: Any, arrays: dict[str, Array], types: dict[str, str]
    ) -> dict[str, Array]:
        """Run with outputs that ONNX Runtime can't turn into numpy arrays."""
        # `feeds` only borrows the arrays' memory: they must live until the run ends.
        feeds = {name: from_numpy(self._types[name], array) for name, array in arrays.items()}
        values = session.run_with_ort_values(list(types), feeds, self.run_options)
        pairs = zip(types.items(), values, strict=True)
        return {name: to_numpy(dtype, value) for (name, dtype), value in pairs}


def _infos(metas: Sequence[Any]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(m.name, type_from_ort(m.type), tuple(m.shape)) for m in metas)


def _memory(infos: Sequence[TensorInfo], places: Sequence[Any], device: str) -> dict[str, str]:
    """Whether tensors lie on the device or on the host, such as shapes that the CPU reads."""
    return {
        info.name: "cpu" if re.search("cpu|pinned", place.name.lower()) else device
        for info, place in zip(infos, places, strict=True)
    }


def _compiled_nodes(session: Any) -> list[ExecutedOp]:
    """Nodes handed to a plugin provider, which hides from the profile what it made of them."""
    return [
        ExecutedOp(node.name, node.op_type, part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != "CPUExecutionProvider"
        for node in part.get_nodes()
    ]
