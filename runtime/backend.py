"""The contract between qgraph and the engines: what a backend offers and what a session does."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np

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
    """

    threads: int = 0
    float_precision: FloatPrecision = "f32"
    profile: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no engine accepts.

        Raises:
            UsageError: `threads` is negative or `float_precision` unknown.
        """
        if self.threads < 0:
            raise UsageError(f"threads is {self.threads}", fix="give 0 (all cores) or more")
        if self.float_precision not in FLOAT_PRECISIONS:
            raise UsageError(
                f"float_precision is {self.float_precision!r}",
                fix=f"choose one of: {', '.join(FLOAT_PRECISIONS)}",
            )


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


@runtime_checkable
class Session(Protocol):
    """A model opened in an engine. `run` may be called from several threads at once."""

    engine: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def run(
        self, feeds: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run once on arrays by input name; return the named outputs, or all of them.

        Raises:
            DataError: An input is missing, unknown, or has the wrong dtype or shape.
            UsageError: An output name is unknown.
            EngineError: The engine fails, or the session is closed.
        """
        ...

    def executed(self) -> tuple[ExecutedOp, ...]:
        """What ran since opening; ends the profile.

        Raises:
            UsageError: The session was opened without `profile=True`.
        """
        ...

    def close(self) -> None:
        """Release the engine's memory and threads; closing twice is harmless."""
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
