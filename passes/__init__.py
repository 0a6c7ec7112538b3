"""Compilation passes, and the explicit list of them."""

from qgraph.pipeline import Pass
from qgraph.registry import by_name, pick

# Every pass outside the folders that have lists of their own. One line a pass.
PASSES = [
    "qgraph.passes.normalize:Normalize",
    "qgraph.passes.infer:InferShapes",
    "qgraph.passes.smooth:Smooth",
    "qgraph.passes.equalize_layers:EqualizeLayers",
    "qgraph.passes.equalize_depthwise:EqualizeDepthwise",
    "qgraph.passes.plan:PlanQuantization",
    "qgraph.passes.calibrate:Calibrate",
    "qgraph.passes.quantize_weights:QuantizeWeights",
    "qgraph.passes.adaround:AdaRound",
    "qgraph.passes.correct_bias:CorrectBias",
    "qgraph.passes.insert_qdq:InsertQDQ",
    "qgraph.passes.dynamic_int8:DynamicInt8",
    "qgraph.passes.weight_only.quantize:WeightOnly",
    "qgraph.passes.fp8.quantize:Fp8",
    "qgraph.passes.fp8.gemm:GemmFloat8",
    "qgraph.passes.half:Half",
    "qgraph.passes.linear_to_matmul:LinearToMatMul",
    "qgraph.passes.fold_images:FoldImages",
    "qgraph.passes.quantize_io:QuantizeIO",
]


def all_passes() -> dict[str, type[Pass]]:
    """Return every registered pass by name: cleanup, fusions, rewrites and the rest."""
    from qgraph.passes.cleanup import CLEANUP
    from qgraph.passes.fusions import FUSIONS
    from qgraph.passes.rewrites import REWRITES

    return by_name([*CLEANUP, *FUSIONS, *REWRITES, *PASSES])


def pass_class(name: str) -> type[Pass]:
    """Return a pass by name.

    Raises:
        UsageError: There is none; the nearest name is suggested.
    """
    return pick("pass", name, all_passes())
