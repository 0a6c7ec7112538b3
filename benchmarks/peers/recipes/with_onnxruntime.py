"""onnxruntime.quantization, as its documentation advises: pre-processed, Q/DQ, per channel."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


def prepare(recipe: str) -> Callable[[Path, list[dict[str, Any]], Path], str]:
    """Import everything; return the function that is timed."""
    import onnx
    from onnx import version_converter
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from ort_reader import Reader

    logging.disable(logging.WARNING)

    def quantize(model: Path, feeds: list[dict[str, Any]], output: Path) -> str:
        prepared = output.with_name("prepared.onnx")
        note = ""
        graph = onnx.load(str(model))
        if any(each.domain in ("", "ai.onnx") and each.version < 13 for each in graph.opset_import):
            # Scales per channel need it; onnxruntime would write a file that it then refuses.
            onnx.save(version_converter.convert_version(graph, 13), str(prepared))
            model, note = prepared, "opset raised to 13, "
        del graph
        try:
            # Without this step mobilenet_v2 loses 6 dB.
            quant_pre_process(str(model), str(prepared))
        except Exception as error:
            # Raised bare, and what its documentation offers for it.
            if "Incomplete symbolic shape inference" not in str(error):
                raise
            quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
            note += "symbolic shape inference skipped"
        if recipe.startswith("dynamic"):
            quantization.quantize_dynamic(
                prepared, output, per_channel=recipe == "dynamic-per-channel"
            )
        else:
            quantization.quantize_static(
                str(prepared),
                str(output),
                Reader(feeds),
                calibrate_method=quantization.CalibrationMethod[METHODS[recipe]],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
            )
        return note.removesuffix(", ")

    return quantize
