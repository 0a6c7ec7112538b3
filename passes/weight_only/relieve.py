"""Gives the layers with the largest errors 8 bits."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from qgraph.facts import QuantizedWeight
from qgraph.graph import Graph
from qgraph.passes.weight_only.layers import Layer
from qgraph.passes.weight_only.sequential import Quantized
from qgraph.passes.weight_only.solve import Settings, Solution, solve_group


def relieve(
    graph: Graph,
    found: Quantized,
    settings: Mapping[Layer, Settings],
    count: int,
    but: Collection[Layer] = (),
) -> Quantized:
    """Round the worst layers to 8 bits.

    Args:
        graph: The float graph.
        found: What the layers became.
        settings: How each was quantized.
        count: How many layers.
        but: Layers that keep what they have.
    """
    uniform = [
        layer
        for layer, solution in found.solutions.items()
        if isinstance(solution.weight, QuantizedWeight) and layer not in but
    ]
    worst = sorted(uniform, key=lambda each: -found.solutions[each].loss)[:count]
    solutions: dict[Layer, Solution] = dict(found.solutions)
    for layer in worst:
        old, weight, own = solutions[layer], layer.matrix(graph), settings[layer]
        if weight.ndim == 3:
            continue
        spec = replace(own.spec, dtype=f"{own.spec.dtype.rstrip('2348')}8")
        eight = replace(own, method="rtn", scaling=False, spec=spec)
        scaled = weight if old.scale is None else weight * old.scale[:, None]
        (new,) = solve_group([scaled], None, eight)
        note = f"{own.spec.dtype} would err by {old.loss:.3g}"
        solutions[layer] = replace(new, scale=old.scale, before=old.before, note=note)
    return replace(found, solutions=solutions)
