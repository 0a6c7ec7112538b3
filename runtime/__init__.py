"""Engines behind one `Session` protocol, and what compares and times them.

A new engine is one file with a class that satisfies `qgraph.runtime.backend.Backend`, one line in
`BACKENDS`, and one test file.
"""

from pathlib import Path

from qgraph.registry import by_name, pick
from qgraph.runtime.backend import Backend

BACKENDS: tuple[str, ...] = (
    "qgraph.runtime.onnxruntime_cpu:OnnxRuntimeCpu",
    "qgraph.runtime.onnxruntime_cuda:OnnxRuntimeCuda",
    "qgraph.runtime.onnxruntime_tensorrt:OnnxRuntimeTensorRt",
    "qgraph.runtime.onnxruntime_tensorrt_rtx:OnnxRuntimeTensorRtRtx",
    "qgraph.runtime.openvino:OpenVino",
    "qgraph.runtime.tensorrt.backend:TensorRt",
)

# Models of at least this size are calibrated on the GPU.
GPU_PAYS_BYTES = 50 << 20


def backends() -> dict[str, Backend]:
    """Every registered backend by name, usable here or not; imports no engine."""
    return {name: found() for name, found in by_name(BACKENDS).items()}


def backend(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        UsageError: There is none of that name; the nearest one is suggested.
    """
    return pick("backend", name, backends())


def observing_backend(model: Path) -> Backend:
    """The engine that calibration looks through: what runs a float model faithfully and fastest.

    A rule instead of a measurement, so that the same machine always gives the same ranges. On an
    H100 beside two cores, CUDA took 0.5 (min-max) and 0.85 (auto) of the time for ResNet-50 (102
    MB), and 2.4 times as long for MobileNetV2 (14 MB), where opening it outweighs the runs.

    Args:
        model: ONNX file; external data lies beside it, its name beginning with the model's.
    """
    return observing_backend_of(
        sum(file.stat().st_size for file in model.parent.glob(f"{model.name}*"))
    )


def observing_backend_of(size: int) -> Backend:
    """The same for a model of `size` bytes, of which parts are run."""
    cuda = backend("onnxruntime-cuda")
    if size < GPU_PAYS_BYTES or cuda.unavailable():
        return backend("onnxruntime-cpu")
    return cuda
