"""NNCF's basic flow, `nncf.quantize`, on an ONNX model; all samples are used.

`default` is the call without options, `mixed` its preset for asymmetric activations, `accurate`
that with the slow bias correction; `transformer` names the model type. NNCF leaves batch norms where they
are and corrects only biases that exist, so `folded` is `mixed` on a model that onnxruntime
pre-processed, folding included (not part of NNCF's recipe).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def prepare(recipe: str) -> Callable[[Path, list[dict[str, Any]], Path], str]:
    """Import everything; return the function that is timed."""
    import nncf
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    options: dict[str, Any] = {}
    if recipe in ("mixed", "accurate", "folded"):
        options["preset"] = nncf.QuantizationPreset.MIXED
    if recipe == "accurate":
        options["fast_bias_correction"] = False
    if recipe == "transformer":
        options["model_type"] = nncf.ModelType.TRANSFORMER

    def quantize(model: Path, feeds: list[dict[str, Any]], output: Path) -> str:
        if recipe == "folded":
            source, model = model, output.with_name("prepared.onnx")
            quant_pre_process(str(source), str(model))
        quantized = nncf.quantize(
            onnx.load(str(model)), nncf.Dataset(feeds), subset_size=len(feeds), **options
        )
        onnx.save(quantized, str(output))
        return ""

    return quantize
