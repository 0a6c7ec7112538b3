"""Sessions whose inputs and outputs stay in the device's memory, and how long they take."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

# Environment variable and session option that let onnxruntime multiply by 4- and 8-bit weights with
# CUTLASS kernels: contrib_ops/cuda/quantization/matmul_nbits.h.
CUTLASS_VARIABLE, CUTLASS_OPTION = "ORT_FPA_INTB_GEMM", "ep.cuda.fpa_intb_gemm"


@dataclass(frozen=True)
class Device:
    """Where sessions run.

    Attributes:
        name: `cuda`, or `cpu` to try the benchmark without a GPU.
        seconds: How long one time is measured for.
    """

    name: str
    seconds: float = 0.05

    @property
    def graphs(self) -> bool:
        """Whether work can be recorded and replayed as CUDA graphs."""
        return self.name == "cuda"


@contextmanager
def cutlass(wanted: bool) -> Iterator[None]:
    """Let sessions opened inside use the CUTLASS kernels, or not."""
    os.environ[CUTLASS_VARIABLE] = "1" if wanted else "0"
    try:
        yield
    finally:
        del os.environ[CUTLASS_VARIABLE]


def open_session(
    model: bytes | Path,
    device: Device,
    *,
    optimise: bool,
    graphs: bool = True,
    lengths: Mapping[str, int] | None = None,
    alone: bool = False,
) -> ort.InferenceSession:
    """Open a model.

    Args:
        model: Serialized, or its file.
        device: Where.
        optimise: Whether onnxruntime may rewrite the graph; it would join equal products.
        graphs: Whether to record CUDA graphs, which fails where a node runs on the CPU.
        lengths: Lengths of dynamic axes by name.
        alone: Whether to fail where the device has no kernel for a node, instead of running it on
            the CPU.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(CUTLASS_OPTION, os.environ.get(CUTLASS_VARIABLE, "0"))
    for name, length in (lengths or {}).items():
        options.add_free_dimension_override_by_name(name, length)
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.name == "cuda":
        settings = {"use_tf32": "0", "enable_cuda_graph": "1" if graphs else "0"}
        providers = [("CUDAExecutionProvider", settings), *(providers if not alone else [])]
        options.add_session_config_entry("session.disable_cpu_ep_fallback", str(int(alone)))
    source = model if isinstance(model, bytes) else str(model)
    session = ort.InferenceSession(source, options, providers=providers, enable_fallback=0)
    first = providers[0][0] if device.name == "cuda" else providers[0]
    if session.get_providers()[0] != first:
        raise RuntimeError(f"{first} did not start; the session has {session.get_providers()}")
    return session


def bind(
    session: ort.InferenceSession,
    device: Device,
    feeds: Mapping[str, np.ndarray],
    outputs: Mapping[str, Any],
) -> ort.IOBinding:
    """Put the feeds into the device's memory and bind them and the outputs.

    Args:
        session: The session.
        device: Its device.
        feeds: By input.
        outputs: OrtValues by output; several may share one, whose content is then the last one's.
    """
    binding = session.io_binding()
    for name, array in feeds.items():
        value = ort.OrtValue.ortvalue_from_numpy(array, device.name, 0)
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    return binding


def room(device: Device, shape: Sequence[int], dtype: Any) -> Any:
    """Return memory of the device for an output."""
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, device.name, 0)


def runner(
    session: ort.InferenceSession, binding: ort.IOBinding, *, graph: int | None
) -> Callable[[], None]:
    """Return a function that runs once and waits for the result.

    Args:
        session: The session.
        binding: Its inputs and outputs; they must stay where they are.
        graph: Number of the CUDA graph to record and replay; None runs kernel by kernel.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1" if graph is None else str(graph))

    def run() -> None:
        session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()

    return run


def median_us(run: Callable[[], None], device: Device) -> float:
    """Return the median time of a run in microseconds, after three runs that don't count."""
    for _ in range(3):
        run()
    times: list[float] = []
    end = time.perf_counter() + device.seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6
