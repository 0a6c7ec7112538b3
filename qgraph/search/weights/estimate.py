"""What each way to keep a weight costs at the outputs: measured, or estimated where that takes too long.

The loss at the outputs is the layer's own loss times a gain. Of a model with few layers every way is
injected and measured. Of others some layers are, spread over the depth; the gains of those between are
interpolated in graph order, kind of layer by kind, as a gate and a value projection differ more than
neighbours in depth do. Noise that is small passes through the rest of a network as through a linear
map, and energies add up (Zhou et al. 2018, "Adaptive quantization for deep neural network", section 3).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qgraph.data import Feeds
from qgraph.search.weights import kept
from qgraph.search.weights.inject import output_losses
from qgraph.search.weights.kinds import FLOAT, Kind
from qgraph.search.weights.local import local_losses
from qgraph.search.weights.losses import Losses
from qgraph.search.weights.space import WeightSpace

# Models with at most so many layers are measured in every way; of others so many layers in one.
EXACT = 16
MOST = 16
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
    probes = probed(space.kinds, [layer.shape for layer in space.layers])
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
    shapes = [layer.shape for layer in space.layers]
    output, measured = interpolated(space.kinds, shapes, found.losses, carried)
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


def probed(
    kinds: Sequence[Sequence[Kind]], shapes: Sequence[tuple[int, ...]]
) -> set[tuple[int, Kind]]:
    """Return which layers are injected in which way.

    Args:
        kinds: For each layer, the ways to keep its weight.
        shapes: For each layer, the shape of its weight.
    """
    if len(kinds) <= EXACT:
        return {(i, kind) for i, each in enumerate(kinds) for kind in each if kind != FLOAT}
    # The last one is the coarsest: its error stands out best.
    able = [i for i, each in enumerate(kinds) if each[-1] != FLOAT]
    families = _families(able, shapes)
    share = max(1, MOST // max(len(families), 1))
    chosen = {i for family in families for i in _spread(family, share)}
    return {(i, kinds[i][-1]) for i in chosen}


def interpolated(
    kinds: Sequence[Sequence[Kind]],
    shapes: Sequence[tuple[int, ...]],
    local: Sequence[NDArray[np.float64]],
    carried: dict[tuple[int, Kind], float],
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.bool_]]]:
    """Return the losses at the outputs and which of them were measured, for each layer [kinds].

    Args:
        kinds: For each layer, the ways to keep its weight.
        shapes: For each layer, the shape of its weight.
        local: For each layer, the losses of its own result.
        carried: What was measured at the outputs, by layer and kind.
    """
    logs: dict[int, float] = {}
    for (layer, kind), loss in carried.items():
        own = local[layer][list(kinds[layer]).index(kind)]
        logs[layer] = float(np.log(max(loss, LEAST) / max(own, LEAST)))
    gains = np.zeros(len(kinds))
    able = [i for i, each in enumerate(kinds) if any(kind != FLOAT for kind in each)]
    for family in _families(able, shapes):
        known = [i for i in family if i in logs]
        if known:
            gains[family] = np.interp(family, known, [logs[i] for i in known])
    output = [np.exp(gain) * own for gain, own in zip(gains, local, strict=True)]
    measured = [np.array([kind == FLOAT for kind in each]) for each in kinds]
    for (layer, kind), loss in carried.items():
        place = list(kinds[layer]).index(kind)
        output[layer][place], measured[layer][place] = loss, True
    return output, measured


def _families(layers: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Layers of one shape together; all together where there are too many shapes to probe each."""
    found: dict[tuple[int, ...], list[int]] = {}
    for layer in layers:
        found.setdefault(shapes[layer], []).append(layer)
    if 2 * len(found) > MOST:
        return [list(layers)]
    return list(found.values())


def _spread(items: Sequence[int], most: int) -> list[int]:
    """At most so many, evenly spread, both ends among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(x)] for x in np.linspace(0, len(items) - 1, most)]
