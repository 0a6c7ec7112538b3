"""NNCF: quantization with accuracy control, which puts operators back into float until the drop is allowed."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def mixed(
    model: Path,
    feeds: list[dict[str, Any]],
    folder: Path,
    score: Callable[[Path], float],
    drop: float,
) -> dict[str, str]:
    """Put back what costs most, ranked by the outputs' error; return notes by name."""
    import nncf
    import numpy as np
    import onnx

    trial = Path("trial.onnx").resolve()

    def validate(candidate: onnx.ModelProto, _: Iterable[Any]) -> tuple[float, None]:
        onnx.save(candidate, str(trial))
        return 1.0 - score(trial), None

    def error(approximate: Any, exact: Any) -> float:
        return float(np.square(np.asarray(approximate) - np.asarray(exact)).mean())

    data = nncf.Dataset(feeds)
    found = nncf.quantize_with_accuracy_control(
        onnx.load(str(model)),
        calibration_dataset=data,
        validation_dataset=data,
        validation_fn=validate,
        max_drop=drop,
        drop_type=nncf.DropType.ABSOLUTE,
        subset_size=len(feeds),
        preset=nncf.QuantizationPreset.MIXED,
    )
    onnx.save(found, str(folder / "nncf-accuracy-control.onnx"))
    return {"nncf-accuracy-control": "put back until the drop was allowed, or nothing was left"}
