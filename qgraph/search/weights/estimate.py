"""What each way to keep a weight costs at the outputs: measured, or estimated where that takes too long.

The loss at the outputs is the layer's own loss times a gain. Of a model with few layers every way is
injected and measured. Of others some layers are, spread over the depth and most densely at its ends,
where gains change most; the gains of those between are interpolated in graph order, family of layers by
family, as a gate and a value projection differ more than neighbours in depth do. Noise that is small
passes through the rest of a network as through a linear map, and energies add up (Zhou et al. 2018,
"Adaptive quantization for deep neural network", section 3).
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from qgraph.data import Feeds
from qgraph.graph import Graph
from qgraph.passes.weight_only.layers import Layer
from qgraph.search.weights import kept
from qgraph.search.weights.inject import output_losses
from qgraph.search.weights.kinds import FLOAT, Kind
from qgraph.search.weights.local import local_losses
from qgraph.search.weights.losses import Losses
from qgraph.search.weights.space import WeightSpace

# Models with at most so many layers are measured in every way; of others so many layers in one.
EXACT = 16
MOST = 48
# Bytes of rounded weights that are held meanwhile, in float.
HELD = 2 << 30
# Losses below this are not told apart.
LEAST = 1e-15


def estimate(space: WeightSpace) -> Losses:
    """Measure and estimate the losses of all layers in all of their ways, or take what is kept."""
    samples: list[Feeds] = [sample.feeds for sample in space.parts.sensitivity]
    key = kept.key_of(space, samples)
    known = kept.load(space.store, key, [len(kinds) for kinds in space.kinds])
    if known is None:
        known = _measured(space, samples)
        kept.keep(space.store, key, known)
    return known


def _measured(space: WeightSpace, samples: Sequence[Feeds]) -> Losses:
    families = [family(space.linear, layer) for layer in space.layers]
    largest = 4 * max(math.prod(layer.shape) for layer in space.layers)
    probes = probed(space.kinds, families, min(MOST, HELD // largest))
    found = local_losses(
        space.linear,
        space.layers,
        space.kinds,
        space.settings,
        samples,
        space.context,
        keep=lambda layer, kind: (layer, kind) in probes,
        rounds_data=space.rounds_data,
    )
    carried = output_losses(
        space.linear,
        space.layers,
        found.drafts,
        samples,
        space.folder,
        space.progress("measuring what rounded weights lose"),
    )
    output, measured = interpolated(space.kinds, families, found.losses, carried)
    output = [
        all_ + _times(all_, own, data)
        for all_, own, data in zip(output, found.losses, found.data, strict=True)
    ]
    return Losses(found.losses, found.data, output, measured, len(samples))


def _times(
    output: NDArray[np.float64], own: NDArray[np.float64], data: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What rounding the data loses at the outputs: errors of a result have one gain."""
    known = own > LEAST
    gain = float(np.exp(np.log(output[known] / own[known]).mean())) if known.any() else 0.0
    return gain * data


def family(graph: Graph, layer: Layer) -> Hashable:
    """Return what layers have in common that stand at the same place of a block.

    That is the shape of the weight, how many layers share the input, and what makes and reads the
    values: so a query projection is told from an output projection, and a gate from what it gates.
    """
    data, result = layer.data, layer.node.outputs[0]
    producer = data.producer()
    sharing = sum(node.op_type == layer.node.op_type for node in graph.readers(data))
    readers = tuple(sorted(node.op_type for node in graph.readers(result)))
    return layer.shape, sharing, "" if producer is None else producer.op_type, readers


def probed(
    kinds: Sequence[Sequence[Kind]], families: Sequence[Hashable], most: int = MOST
) -> set[tuple[int, Kind]]:
    """Return which layers are injected in which way.

    Args:
        kinds: For each layer, the ways to keep its weight.
        families: For each layer, what it has in common with others.
        most: About so many layers, of a model with many.
    """
    if len(kinds) <= EXACT:
        return {(i, kind) for i, each in enumerate(kinds) for kind in each if kind != FLOAT}
    # The last one is the coarsest: its error stands out best.
    able = [i for i, each in enumerate(kinds) if each[-1] != FLOAT]
    groups = _together(able, families)
    share = max(1, most // max(len(groups), 1))
    return {(i, kinds[i][-1]) for group in groups for i in _spread(group, share)}


def interpolated(
    kinds: Sequence[Sequence[Kind]],
    families: Sequence[Hashable],
    local: Sequence[NDArray[np.float64]],
    carried: dict[tuple[int, Kind], float],
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.bool_]]]:
    """Return the losses at the outputs and which of them were measured, for each layer [kinds].

    Args:
        kinds: For each layer, the ways to keep its weight.
        families: For each layer, what it has in common with others.
        local: For each layer, the losses of its own result.
        carried: What was measured at the outputs, by layer and kind.
    """
    logs: dict[int, float] = {}
    for (layer, kind), loss in carried.items():
        own = local[layer][list(kinds[layer]).index(kind)]
        logs[layer] = float(np.log(max(loss, LEAST) / max(own, LEAST)))
    gains = np.zeros(len(kinds))
    able = [i for i, each in enumerate(kinds) if any(kind != FLOAT for kind in each)]
    for group in _together(able, families):
        known = [i for i in group if i in logs]
        if known:
            gains[group] = np.interp(group, known, [logs[i] for i in known])
    output = [np.exp(gain) * own for gain, own in zip(gains, local, strict=True)]
    measured = [np.array([kind == FLOAT for kind in each]) for each in kinds]
    for (layer, kind), loss in carried.items():
        place = list(kinds[layer]).index(kind)
        output[layer][place], measured[layer][place] = loss, True
    return output, measured


def _together(layers: Sequence[int], families: Sequence[Hashable]) -> list[list[int]]:
    """Layers of one family together; all together where there are too many to probe each."""
    found: dict[Hashable, list[int]] = {}
    for layer in layers:
        found.setdefault(families[layer], []).append(layer)
    if 2 * len(found) > MOST:
        return [list(layers)]
    return list(found.values())


def _spread(items: Sequence[int], most: int) -> list[int]:
    """At most so many, both ends among them, more densely towards the ends."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[len(items) // 2]]
    places = (1 - np.cos(np.linspace(0, np.pi, most))) / 2 * (len(items) - 1)
    return [items[i] for i in sorted({round(x) for x in places})]
