"""Engines behind one `Session` protocol, and what compares and times them.

A new engine is one file with a class that satisfies `qgraph.runtime.backend.Backend`, one line in
`BACKENDS`, and one test file.
"""

from qgraph.registry import by_name, pick
from qgraph.runtime.backend import Backend

BACKENDS: tuple[str, ...] = (
    "qgraph.runtime.onnxruntime_cpu:OnnxRuntimeCpu",
    "qgraph.runtime.onnxruntime_cuda:OnnxRuntimeCuda",
    "qgraph.runtime.openvino:OpenVino",
    "qgraph.runtime.tensorrt:TensorRt",
)


def backends() -> dict[str, Backend]:
    """Every registered backend by name, usable here or not; imports no engine."""
    return {name: found() for name, found in by_name(BACKENDS).items()}


def backend(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        UsageError: There is none of that name; the nearest one is suggested.
    """
    return pick("backend", name, backends())


def observing_backend() -> Backend:
    """The fastest engine here that runs float models faithfully: what calibration looks through."""
    cuda = backend("onnxruntime-cuda")
    return backend("onnxruntime-cpu") if cuda.unavailable() else cuda
