"""The contract between qgraph and the engines: what a backend offers and what a session does."""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from pydantic import BaseModel

from qgraph.errors import UsageError

FloatPrecision = Literal["f32", "bf16", "f16"]
# Environment variable that limits the cores of this process.
CORES = "QGRAPH_CORES"
FLOAT_PRECISIONS: tuple[FloatPrecision, ...] = ("f32", "bf16", "f16")


@dataclass(frozen=True)
class TensorInfo:
    """Name, type and shape of one graph input or output.

    Attributes:
        name: Tensor name.
        dtype: ONNX type name in lower case: 'float32', 'bfloat16', 'int64', 'string'; a sequence
            is spelled 'seq(float32)'.
        shape: One entry an axis: a size, a symbolic name, or None for an unnamed dynamic axis.
            An empty tuple is a scalar or a tensor of unknown rank; engines do not tell them apart.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] = ()

    def __str__(self) -> str:
        """Return `name dtype [shape]`, as error messages show it."""
        return f"{self.name} {self.dtype} {format_shape(self.shape)}"


def format_shape(shape: Sequence[int | str | None]) -> str:
    """A shape as messages show it, such as `[batch, 3, ?]`; `?` is an unnamed dynamic axis."""
    return f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"


@dataclass(frozen=True)
class EngineOptions:
    """What every engine can be told.

    Attributes:
        threads: Threads for one inference; 0 means `available_cores()`.
        float_precision: Arithmetic of the float parts. Only OpenVINO offers 'bf16' and 'f16';
            an engine that can't obey refuses to open, it never substitutes.
        profile: Record what runs, for `Session.executed`. Slows every run down.
        engine: Options that only one engine has, by name, as JSON values; its module documents
            them, and it refuses what it does not know.
    """

    threads: int = 0
    float_precision: FloatPrecision = "f32"
    profile: bool = False
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values that no engine accepts.

        Raises:
            UsageError: `threads` is negative, `float_precision` unknown or `engine` no mapping.
        """
        if self.threads < 0:
            raise UsageError(f"threads is {self.threads}", fix="give 0 (all cores) or more")
        if self.float_precision not in FLOAT_PRECISIONS:
            raise UsageError(
                f"float_precision is {self.float_precision!r}",
                fix=f"choose one of: {', '.join(FLOAT_PRECISIONS)}",
            )
        if not isinstance(self.engine, Mapping):
            raise UsageError(f"engine is {self.engine!r}", fix="give options by name")


@dataclass(frozen=True)
class ExecutedOp:
    """One kernel that an engine ran, after its own optimization.

    Attributes:
        name: Node name as the engine has it; fused nodes carry names the engine made up.
        op_type: Operator that ran, such as 'QLinearConv' where the model had Q/DQ around a Conv.
        provider: ONNX Runtime execution provider, such as 'CPUExecutionProvider'.
        input_dtypes: Types of the inputs, constants included; empty where the engine hides them.
        output_dtypes: Types of the outputs; empty where the engine hides them.
        time_us: Microseconds a run, median over the profiled runs; None where not measured.
    """

    name: str
    op_type: str
    provider: str
    input_dtypes: tuple[str, ...] = ()
    output_dtypes: tuple[str, ...] = ()
    time_us: float | None = None


class DLPack(Protocol):
    """An array of any library, on any device, that others can read without a copy."""

    def __dlpack__(self, *, stream: Any = ...) -> Any:
        """Return a capsule with its address, type and shape."""
        ...

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return kind and number of the device that it lies on."""
        ...


class Bound(Protocol):
    """A model on buffers of fixed shapes and places, to run again and again without copies.

    Write into `inputs` and read `outputs` by way of DLPack, as with `torch.from_dlpack`; whoever writes
    on a stream of their own synchronizes it before `run`. One thread at a time may use it, and it
    must not outlive its session.
    """

    @property
    def inputs(self) -> Mapping[str, DLPack]:
        """Buffers that `run` reads."""
        ...

    @property
    def outputs(self) -> Mapping[str, DLPack]:
        """What the last run left; the next one overwrites it."""
        ...

    def update(self, feeds: Mapping[str, Any]) -> None:
        """Copy feeds into the inputs that they name, as an alternative to writing there.

        Raises:
            DataError: One is unknown, or has another type or shape than was bound.
        """
        ...

    def run(self) -> None:
        """Run on what the inputs hold now, and wait for the result.

        Raises:
            EngineError: The engine fails, or the session is closed.
        """
        ...


@runtime_checkable
class Session(Protocol):
    """A model opened in an engine. Any of its methods may be called from several threads at once.

    Attributes:
        engine: Name of the backend.
        device: Where the engine computes and `run_dlpack` leaves results: `cpu` or `cuda`.
        inputs: What it takes.
        outputs: What it gives.
    """

    engine: str
    device: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run once on arrays by input name; return the named outputs, or all of them.

        Feeds are numpy arrays, or other libraries' on the host, which are not copied.

        Raises:
            DataError: An input is missing, unknown, or has the wrong dtype, shape or device.
            UsageError: An output name is unknown.
            EngineError: The engine fails, or the session is closed.
        """
        ...

    def run_dlpack(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, DLPack]:
        """Run once on arrays that stay on their device, and leave the results on the engine's.

        Feeds are arrays of any library that has `__dlpack__`, or numpy's. Neither those that lie
        where the engine computes nor the results are copied, except where the session replays
        CUDA graphs: these have buffers of their own (use `bind`).

        Raises:
            DataError: As `run`, and where an array is not contiguous.
            UsageError: An output name is unknown.
            EngineError: The engine fails, or the session is closed.
        """
        ...

    def bind(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> Bound:
        """Copy feeds into buffers on the engine's device, run once, and keep inputs and outputs.

        Raises:
            DataError, UsageError, EngineError: As `run_dlpack`.
        """
        ...

    def submit(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> "Future[dict[str, np.ndarray[Any, Any]]]":
        """Run in the background, and return at once; see `run`.

        Raises:
            EngineError: The session is closed.
        """
        ...

    def warmup(self, feeds: Mapping[str, Any] | None = None, runs: int = 3) -> None:
        """Run a few times, on random feeds where none are given."""
        ...

    def profile(self, feeds: Mapping[str, Any], runs: int = 3) -> tuple[ExecutedOp, ...]:
        """Run a few times and return what ran, with times; ends the profile.

        Raises:
            UsageError: The session was opened without `profile=True`.
        """
        ...

    def executed(self) -> tuple[ExecutedOp, ...]:
        """What ran since opening; ends the profile.

        Raises:
            UsageError: The session was opened without `profile=True`.
        """
        ...

    def close(self) -> None:
        """Wait for runs in flight, then release the engine's memory and threads.

        Later runs, and submitted ones that have not begun, raise EngineError. Closing twice is
        harmless.
        """
        ...

    def __enter__(self) -> Self:
        """Return the session."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the session."""
        ...


@runtime_checkable
class Backend(Protocol):
    """An engine that can open models."""

    name: str

    def unavailable(self) -> str | None:
        """None when the engine can be used here, else one line: the reason and what to do."""
        ...

    def open(self, model: Path | bytes, options: EngineOptions = ...) -> Session:
        """Open a model: a path (needed for external data and over 2 GB) or a serialized model.

        Raises:
            EngineError: The engine is not usable here, refuses the model or an option.
            ModelError: The file does not exist.
        """
        ...


@runtime_checkable
class Tunable(Protocol):
    """A backend with several ways to run a model, of which measuring finds the fastest."""

    def variants(
        self, precision: str, operators: Collection[str] = ..., asked: BaseModel | None = ...
    ) -> Mapping[str, EngineOptions]:
        """Options to try for a model, by a label for people; the plainest first.

        Args:
            precision: The model's.
            operators: Names of its operators.
            asked: What the user has decided: the engine's table of the recipe, if it has one.
        """
        ...


@runtime_checkable
class WithMemory(Protocol):
    """A backend that computes in a device's memory."""

    def device_memory(self) -> int | None:
        """Bytes in use on the device, by all processes; None where nobody tells."""
        ...


def available_cores() -> int:
    """Logical cores this process may use: its affinity mask, cut by a container's CPU quota.

    `QGRAPH_CORES`, where it is set, cuts them further: so worker processes share a machine.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_quota(Path("/sys/fs/cgroup/cpu.max"))
    limit = os.environ.get(CORES, "")
    return max(1, min(cores, quota or cores, int(limit) if limit.isdecimal() else cores))


def _cgroup_quota(path: Path) -> int | None:
    """Whole cores that cgroup v2 grants, or None without a limit.

    Threads beyond the quota spin away the time slice of the ones that work.
    """
    try:
        limit, period = path.read_text().split()
        return math.ceil(int(limit) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None
