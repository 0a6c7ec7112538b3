"""What each way to keep a weight does to its layer's own result, from the Gram matrix of its input."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.data import Feeds
from qgraph.graph import Graph
from qgraph.passes.weight_only.boundary import Boundary
from qgraph.passes.weight_only.layers import Layer
from qgraph.passes.weight_only.observe import forget, keep_inputs, run_stage, summed_up
from qgraph.passes.weight_only.solve import Settings, Solution, solve_experts, solve_group
from qgraph.passes.weight_only.stages import cut
from qgraph.passes.weight_only.statistics import InputStatistics
from qgraph.search.weights.data_rounding import data_loss
from qgraph.search.weights.kinds import FLOAT, Kind

# Bytes of values that stages hand on in memory; more goes to disk.
MEMORY = 1 << 30
LABEL = "measuring inputs of layers"

Drafts = dict[tuple[int, Kind], NDArray[np.float32]]
"""By layer and kind, the weight as that kind rounds it, float32, of the weight's own shape."""


@dataclass(frozen=True, eq=False)
class Local:
    """Errors of layers, each on its own.

    Attributes:
        losses: For each layer, tr(E^T H E) / tr(W^T H W) of each of its kinds; 0 for float.
        data: The same of rounding the layer's input, where the kernels do.
        drafts: The rounded weights that were asked for.
    """

    losses: list[NDArray[np.float64]]
    data: list[NDArray[np.float64]]
    drafts: Drafts


def local_losses(
    graph: Graph,
    layers: Sequence[Layer],
    kinds: Sequence[Sequence[Kind]],
    settings: Callable[[Kind], Settings],
    samples: Sequence[Feeds],
    context: Context,
    keep: Callable[[int, Kind], bool] = lambda layer, kind: False,
    *,
    rounds_data: bool = False,
) -> Local:
    """Round every weight in all of its ways, on the inputs that its layer gets in the float model.

    The model runs once, stage by stage, so that no more than one Gram matrix is held at a time.

    Args:
        graph: The float graph, linear layers as products; it is not changed.
        layers: The layers.
        kinds: For each, the ways to keep its weight.
        settings: How one of them is drafted.
        samples: What the inputs are looked at on.
        context: Told about progress.
        keep: Which rounded weights are wanted, by index of the layer and kind.
        rounds_data: Whether kernels round their data to int8 in the weights' groups.

    Raises:
        EngineError: The engine refuses a part of the graph.
        DataError: A sample makes a layer's input NaN or infinite.
    """
    index = {layer: number for number, layer in enumerate(layers)}
    zeros = [[np.zeros(len(each)) for each in kinds] for _ in range(2)]
    found = Local(zeros[0], zeros[1], {})
    how = {kind: settings(kind) for each in kinds for kind in each if kind != FLOAT}
    stages = cut(graph, list(layers))
    with Boundary(MEMORY) as boundary:
        keep_inputs(stages, samples, boundary)
        for number, stage in enumerate(stages):
            label = f"{LABEL}, stage {number + 1} of {len(stages)}"
            run_stage(graph, stage, {}, boundary, context, label)
            for group in stage.groups:
                statistics = summed_up(group, boundary)
                name = group.data.name or ""
                data = boundary.get(0, [name])[name] if rounds_data else None
                for layer in group.layers:
                    at = index[layer]
                    _layer(graph, layer, statistics, data, kinds[at], how, found, at, keep)
            forget(stage, boundary)
    return found


def _layer(
    graph: Graph,
    layer: Layer,
    statistics: InputStatistics,
    data: NDArray[np.floating] | None,
    kinds: Sequence[Kind],
    how: Mapping[Kind, Settings],
    found: Local,
    at: int,
    keep: Callable[[int, Kind], bool],
) -> None:
    weight = layer.matrix(graph)
    for place, kind in enumerate(kinds):
        if kind == FLOAT:
            continue
        solution = _drafted(weight, statistics, how[kind])
        found.losses[at][place] = solution.loss
        if data is not None:
            found.data[at][place] = data_loss(data, weight, kind.group)
        if keep(at, kind):
            found.drafts[at, kind] = solution.effective()
    layer.release(graph)


def _drafted(
    weight: NDArray[np.floating], statistics: InputStatistics, settings: Settings
) -> Solution:
    if weight.ndim == 3:
        return solve_experts(weight, statistics, settings)
    (solution,) = solve_group([weight], statistics, settings)
    return solution
