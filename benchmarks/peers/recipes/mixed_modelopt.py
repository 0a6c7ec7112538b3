"""NVIDIA ModelOpt: int8 with the rest in float16, and its conversion to float16 that keeps sensitive nodes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def mixed(
    model: Path,
    feeds: list[dict[str, Any]],
    folder: Path,
    score: Callable[[Path], float],
    drop: float,
) -> dict[str, str]:
    """Write int8 beside float16 and float32, and float16 alone; return notes by name."""
    import onnx
    from modelopt.onnx.quantization import quantize
    from ort_reader import Reader

    made = {}
    for half in ("fp32", "fp16"):
        name = f"modelopt-int8-{half}"
        try:
            quantize(
                onnx_path=str(model),
                calibration_data_reader=Reader(feeds),
                calibration_eps=["cpu"],
                calibration_method="max",
                high_precision_dtype=half,
                output_path=str(folder / f"{name}.onnx"),
            )
            made[name] = f"int8, the rest in {half}"
        except Exception as error:  # noqa: BLE001 - said in the report
            made[name] = f"fails: {error}"
    try:
        from modelopt.onnx.autocast import convert_to_mixed_precision

        converted = convert_to_mixed_precision(
            onnx_path=str(model), low_precision_type="fp16", keep_io_types=True
        )
        onnx.save(converted, str(folder / "modelopt-autocast.onnx"))
        made["modelopt-autocast"] = "float16 but for nodes that it finds sensitive"
    except Exception as error:  # noqa: BLE001 - said in the report
        made["modelopt-autocast"] = f"fails: {error}"
    return made
