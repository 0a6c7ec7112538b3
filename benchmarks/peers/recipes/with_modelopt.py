"""NVIDIA ModelOpt's ONNX quantization: int8, the rest left in float32, calibrated on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def prepare(recipe: str) -> Callable[[Path, list[dict[str, Any]], Path], str]:
    """Import everything; return the function that is timed."""
    from modelopt.onnx.quantization import quantize as modelopt_quantize
    from ort_reader import Reader

    def quantize(model: Path, feeds: list[dict[str, Any]], output: Path) -> str:
        modelopt_quantize(
            str(model),
            quantize_mode="int8",
            calibration_method=recipe,
            calibration_data_reader=Reader(feeds),
            calibration_eps=["cpu"],
            # Its default, fp16, would measure more than int8.
            high_precision_dtype="fp32",
            output_path=str(output),
            log_level="WARNING",
        )
        return ""

    return quantize
