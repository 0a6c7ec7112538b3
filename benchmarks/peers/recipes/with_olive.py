"""Olive's workflow with its pass OnnxStaticQuantization or OnnxDynamicQuantization, and no options.

Both passes pre-process the model and call onnxruntime's quantizer with options of their own.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

PASSES = {"static": "OnnxStaticQuantization", "dynamic": "OnnxDynamicQuantization"}


def prepare(recipe: str) -> Callable[[Path, list[dict[str, Any]], Path], str]:
    """Import everything; return the function that is timed."""
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    from olive.data.registry import Registry
    from olive.workflows import run

    samples: list[dict[str, Any]] = []

    # Samples may have different shapes, so nothing may stack them to batches.
    @Registry.register_dataset("samples")  # type: ignore[untyped-decorator]
    def dataset(**_: Any) -> list[dict[str, Any]]:
        return samples

    @Registry.register_dataloader("one_by_one")  # type: ignore[untyped-decorator]
    def loader(dataset: list[dict[str, Any]], **_: Any) -> list[tuple[dict[str, Any], int]]:
        return [(sample, 0) for sample in dataset]

    data = {
        "name": "calibration",
        "load_dataset_config": {"type": "samples"},
        "dataloader_config": {"type": "one_by_one"},
    }

    def quantize(model: Path, feeds: list[dict[str, Any]], output: Path) -> str:
        samples.extend(feeds)
        step: dict[str, Any] = {"type": PASSES[recipe]}
        if recipe == "static":
            step["data_config"] = data
        folder = output.with_name("olive")
        run(
            {
                "input_model": {"type": "ONNXModel", "model_path": str(model)},
                "passes": {"quantize": step},
                "output_dir": str(folder),
                "cache_dir": str(output.with_name("cache")),
                "log_severity_level": 3,
            }
        )
        next(folder.rglob("*.onnx")).rename(output)
        return ""

    return quantize
