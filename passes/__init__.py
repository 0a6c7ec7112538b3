"""Compilation passes, and the explicit list of them."""

from importlib import import_module

from qgraph.errors import unknown_name
from qgraph.pipeline import Pass

# Every pass outside the folders that have lists of their own. One line a pass.
PASSES = [
    "qgraph.passes.normalize:Normalize",
    "qgraph.passes.infer:InferShapes",
    "qgraph.passes.plan:PlanQuantization",
    "qgraph.passes.calibrate:Calibrate",
    "qgraph.passes.quantize_weights:QuantizeWeights",
    "qgraph.passes.insert_qdq:InsertQDQ",
    "qgraph.passes.dynamic_int8:DynamicInt8",
    "qgraph.passes.half:Half",
]


def load(reference: str) -> type[Pass]:
    """Import the class that a "module:Class" string names."""
    module, _, name = reference.partition(":")
    found: type[Pass] = getattr(import_module(module), name)
    return found


def all_passes() -> dict[str, type[Pass]]:
    """Return every registered pass by name: cleanup, fusions and the rest."""
    from qgraph.passes.cleanup import CLEANUP
    from qgraph.passes.fusions import FUSIONS

    classes = [load(reference) for reference in [*CLEANUP, *FUSIONS, *PASSES]]
    return {each.name: each for each in classes}


def pass_class(name: str) -> type[Pass]:
    """Return a pass by name.

    Raises:
        UsageError: There is none; the nearest name is suggested.
    """
    known = all_passes()
    if name not in known:
        raise unknown_name("pass", name, known)
    return known[name]
