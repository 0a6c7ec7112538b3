"""AIMET's ONNX flow: simulate, compute encodings, export as Q/DQ.

The batch norms are folded first and weights quantized per channel, as its guides do. `cle` adds
cross-layer equalization, `adaround` its AdaRound with the default number of steps.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def prepare(recipe: str) -> Callable[[Path, list[dict[str, Any]], Path], str]:
    """Import everything; return the function that is timed."""
    import aimet_onnx
    import onnx
    from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
    from aimet_onnx.common.quantsim_config import config_utils
    from aimet_onnx.cross_layer_equalization import equalize_model

    config = Path(config_utils.__file__).with_name("default_config_per_channel.json")
    scheme = "min_max" if recipe == "minmax" else "tf_enhanced"

    def quantize(model: Path, feeds: list[dict[str, Any]], output: Path) -> str:
        graph = onnx.load(str(model))
        if recipe == "cle":
            equalize_model(graph)
        else:
            fold_all_batch_norms_to_weight(graph)
        sim = aimet_onnx.QuantizationSimModel(
            graph, quant_scheme=scheme, config_file=str(config), dummy_input=feeds[0]
        )
        if recipe == "adaround":
            aimet_onnx.apply_adaround(sim, feeds)
        sim.compute_encodings(feeds)
        onnx.save(sim.to_onnx_qdq(prequantize_constants=True), str(output))
        return ""

    return quantize
