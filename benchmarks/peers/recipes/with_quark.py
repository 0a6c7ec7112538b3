"""AMD Quark's ONNX flow.

`A8W8` and `XINT8` are its configurations of that name, with weights per tensor; `U8W8` is made of
its specs for uint8 activations and int8 weights per channel. `-cle`, `-bias`, `-adaround` and
`-adaquant` add an algorithm with its default options.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def prepare(recipe: str) -> Callable[[Path, list[dict[str, Any]], Path], str]:
    """Import everything; return the function that is timed."""
    from ort_reader import Reader
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import algorithm
    from quark.onnx.quantization.config.config import QConfig
    from quark.onnx.quantization.config.spec import (
        Int8Spec,
        QLayerConfig,
        QuantGranularity,
        UInt8Spec,
    )

    name, _, extra = recipe.partition("-")
    algorithms = {
        "cle": algorithm.CLEConfig,
        "bias": algorithm.BiasCorrectionConfig,
        "adaround": algorithm.AdaRoundConfig,
        "adaquant": algorithm.AdaQuantConfig,
    }
    if name == "U8W8":
        weight = Int8Spec(quant_granularity=QuantGranularity.Channel)
        config = QConfig(global_config=QLayerConfig(activation=UInt8Spec(), weight=weight))
    else:
        config = QConfig.get_default_config(name)
    if extra:
        config.algo_config = [algorithms[extra]()]

    def quantize(model: Path, feeds: list[dict[str, Any]], output: Path) -> str:
        ModelQuantizer(config).quantize_model(str(model), str(output), Reader(feeds))
        return ""

    return quantize
