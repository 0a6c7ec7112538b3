"""Compiles a model with OpenVINO, where the package is installed, as a server would."""

from pathlib import Path
from typing import Any

from qgraph.errors import EngineError


def check_openvino(model: Path, properties: dict[str, Any]) -> bool:
    """Read and compile a model for the CPU; False where OpenVINO is not installed.

    Args:
        model: The ONNX file.
        properties: As the server's configuration has them.

    Raises:
        EngineError: OpenVINO refuses it.
    """
    try:
        import openvino
    except ImportError:
        return False
    try:
        openvino.Core().compile_model(str(model), "CPU", properties)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EngineError(
            f"OpenVINO refuses the model: {lines[-1] if lines else 'it gives no reason'}",
            where=str(model),
            fix="onnxruntime may take it: --to triton --backend onnxruntime, or --to folder",
        ) from error
    return True
