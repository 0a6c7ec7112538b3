"""Quantizes layers in the order in which they compute, each on what those before it really give."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.graph import Graph, Node, Value
from qgraph.passes.weight_only.boundary import Boundary
from qgraph.passes.weight_only.layers import Layer
from qgraph.passes.weight_only.observe import forget, keep_inputs, opened, run_stage, summed_up
from qgraph.passes.weight_only.scaling import (
    MUL,
    Place,
    columns_of,
    factors,
    norm_place,
    product_candidates,
)
from qgraph.passes.weight_only.solve import MIXED, Settings, Solution, solve_experts, solve_group
from qgraph.passes.weight_only.stages import Group, Stage, cut
from qgraph.passes.weight_only.store import Store
from qgraph.runtime import GPU_PAYS_BYTES, observing_backend_of
from qgraph.subgraph import read_by


@dataclass(frozen=True, eq=False)
class Quantized:
    """The quantized weights of a graph.

    Attributes:
        solutions: By layer.
        places: Where each scaled group's input is divided by its scale.
        resumed: How many layers an interrupted run had done.
    """

    solutions: dict[Layer, Solution]
    places: dict[Group, Place]
    resumed: int = 0


def without_data(
    graph: Graph, settings: Mapping[Layer, Settings], context: Context, store: Store
) -> Quantized:
    """Quantize each layer from its weight alone."""
    solutions: dict[Layer, Solution] = {}
    for done, (layer, own) in enumerate(settings.items()):
        weight = layer.matrix(graph)
        if weight.ndim == 3:
            found = [solve_experts(weight, None, own)]
        else:
            found = solve_group([weight], None, own)
        (solutions[layer],) = store.put(done, found)
        layer.release(graph)
        context.progress("quantizing weights", done + 1, len(settings))
    return Quantized(solutions, {})


def on_data(
    graph: Graph,
    settings: Mapping[Layer, Settings],
    data: Iterable[Any],
    context: Context,
    *,
    store: Store,
    memory: int,
) -> Quantized:
    """Quantize layer after layer; those behind see the results of quantized ones in front.

    Args:
        graph: The float graph; it is not changed.
        settings: How to quantize each layer, in graph order.
        data: Samples, read once.
        context: Told about progress.
        store: Has what an interrupted run had done, and takes what is done now.
        memory: Bytes for values handed from stage to stage; more goes to disk.

    Raises:
        EngineError: The engine refuses a stage.
        DataError: There are no samples, or one makes a layer's input NaN or infinite.
    """
    layers = list(settings)
    stages = cut(graph, layers)
    solutions: dict[Layer, Solution] = {}
    places: dict[Group, Place] = {}
    number = resumed = 0
    # Parts are smaller than what pays off on a GPU, all of them together may not be.
    size = 4 * sum(math.prod(layer.shape) for layer in layers)
    engine, device = observing_backend_of(size), size >= GPU_PAYS_BYTES
    with Boundary(memory) as boundary:
        keep_inputs(stages, data, boundary)
        for index, stage in enumerate(stages):
            label = f"quantizing weights, stage {index + 1} of {len(stages)}"
            weights = _stand_ins(stage, solutions)
            run_stage(graph, stage, weights, boundary, context, label, engine)
            for group in stage.groups:
                place = None
                if _can_scale(group, settings):
                    place = _place(graph, stage, group, layers, boundary, weights)
                found = store.get(number)
                if found is None or len(found) != len(group.layers):
                    solved = _solve(graph, group, boundary, settings, place, device)
                    found = store.put(number, solved)
                else:
                    resumed += len(found)
                number += 1
                solutions.update(zip(group.layers, found, strict=True))
                for layer in group.layers:
                    layer.release(graph)
                if place is not None and found[0].scale is not None:
                    places[group] = place
            forget(stage, boundary)
    return Quantized(solutions, places, resumed)


def _solve(
    graph: Graph,
    group: Group,
    boundary: Boundary,
    settings: Mapping[Layer, Settings],
    place: Place | None,
    device: bool,
) -> list[Solution]:
    own = [settings[layer] for layer in group.layers]
    peaks = any(one.method == MIXED for one in own)
    device = device and all(one.uniform for one in own)
    statistics = summed_up(group, boundary, peaks=peaks, device=device)
    matrices = [layer.matrix(graph) for layer in group.layers]
    if matrices[0].ndim == 3:
        return [solve_experts(matrices[0], statistics, own[0])]
    # Weights that other inputs are multiplied with too can't be scaled for this one.
    scaled = own if place is not None else [one.unscaled() for one in own]
    return solve_group(matrices, statistics, scaled, None if place is None else place.columns)


def _stand_ins(stage: Stage, solutions: dict[Layer, Solution]) -> dict[Value, NDArray[np.float32]]:
    """What the quantized layers among a stage's nodes multiply by."""
    by_node = {node: layer for layer in solutions for node in layer.nodes}
    layers = [by_node[node] for node in stage.nodes if node in by_node]
    return {layer.weight: solutions[layer].effective() for layer in layers}


def _can_scale(group: Group, settings: Mapping[Layer, Settings]) -> bool:
    return all(
        settings[layer].scaling and not layer.others and len(layer.shape) == 2
        for layer in group.layers
    )


# -- where scales go ---------------------------------------------------------------------------


def _place(
    graph: Graph,
    stage: Stage,
    group: Group,
    layers: Sequence[Layer],
    boundary: Boundary,
    weights: dict[Value, NDArray[np.float32]],
) -> Place:
    """Find where the group's scale goes; products are tried out on one sample."""
    place = norm_place(graph, group)
    if place is not None:
        return place
    for candidate in product_candidates(graph, group, layers):
        columns = _tried(graph, stage, group, candidate, boundary, weights)
        if columns is not None:
            return Place("product", value=candidate.value, layer=candidate.layer, columns=columns)
    return MUL


def _tried(
    graph: Graph,
    stage: Stage,
    group: Group,
    candidate: Place,
    boundary: Boundary,
    weights: dict[Value, NDArray[np.float32]],
) -> NDArray[np.int64] | None:
    """Compute the group's input from three products that differ in their columns' sizes."""
    value, layer = candidate.value, candidate.layer
    assert value is not None and layer is not None
    width = layer.shape[-1]
    by = factors(width)
    (data,) = _computed(graph, stage, layer.data, boundary, [{}], {})
    shape = (*data.shape[:-1], width)
    base = np.random.default_rng(0).uniform(0.5, 1.5, shape).astype(np.float32)
    given = [{value: base * factor} for factor in (np.float32(1), *by)]
    runs = _computed(graph, stage, group.data, boundary, given, weights)
    return columns_of(runs[0], runs[1], runs[2], by)


def _computed(
    graph: Graph,
    stage: Stage,
    result: Value,
    boundary: Boundary,
    given: Sequence[dict[Value, NDArray[Any]]],
    weights: dict[Value, NDArray[np.float32]],
) -> list[NDArray[Any]]:
    """Compute one value of a stage for the first sample, once for each set of given values."""
    if result in stage.reads:
        return [boundary.get(0, [result.name or ""])[result.name or ""] for _ in given]
    nodes = _between(stage.nodes, set(given[0]), result)
    made = {out for node in nodes for out in node.outputs}
    read = dict.fromkeys(v for node in nodes for v in read_by(node) if v not in made)
    known = [v for v in read if v in set(stage.reads) and v not in given[0]]
    arrays = boundary.get(0, [v.name or "" for v in known])
    feeds = dict(zip(known, arrays.values(), strict=True))
    name = result.name or ""
    with opened(graph, nodes, feeds | given[0], [result], weights) as session:
        runs = [{v.name or "": x for v, x in (feeds | each).items()} for each in given]
        return [session.run(run, [name])[name] for run in runs]


def _between(nodes: Sequence[Node], given: set[Value], result: Value) -> list[Node]:
    """Return the nodes that make `result` of what is given, in order."""
    inside = set(nodes)
    found: set[Node] = set()
    waiting = [result]
    while waiting:
        each = waiting.pop()
        node = each.producer()
        if each in given or node is None or node in found or node not in inside:
            continue
        found.add(node)
        waiting.extend(read_by(node))
    return [node for node in nodes if node in found]
