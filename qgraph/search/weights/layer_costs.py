"""What a layer takes in each way to keep its weight: bytes counted, times measured once a shape.

A model of the layer alone is written by the passes that write the whole one, so that its constants are
those of the whole model, and its time is that of the engine's own kernel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qgraph import flow
from qgraph.errors import QGraphError
from qgraph.graph import Graph
from qgraph.passes.weight_only.layers import Layer
from qgraph.pipeline import Pipeline
from qgraph.search.costs import Clock, Engine
from qgraph.search.observed import Seen
from qgraph.search.prepared import clone
from qgraph.search.unit_parts import Part, keyed, make_part, rounded_weights
from qgraph.search.weights.kinds import FLOAT, Kind
from qgraph.search.weights.space import WeightSpace


@dataclass(frozen=True)
class LayerCost:
    """What one layer takes in one way.

    Attributes:
        bytes: Of its constants in the file.
        ms: Time of one run on one thread, milliseconds.
    """

    bytes: int
    ms: float


def layer_costs(
    space: WeightSpace, seen: Mapping[str, Seen], engine: Engine
) -> list[list[LayerCost | None]]:
    """Return what each layer takes in each of its ways; None for one that can't be written.

    Args:
        space: The search.
        seen: What the layers' inputs look like.
        engine: What runs the model.
    """
    clock = Clock(engine, space.store)
    shared = _shared(space)
    known: dict[tuple[object, ...], LayerCost | None] = {}
    found: list[list[LayerCost | None]] = []
    tell = space.progress("timing layers")
    for done, (layer, kinds) in enumerate(zip(space.layers, space.kinds, strict=True)):
        own: list[LayerCost | None] = []
        for kind in kinds:
            count, kept = len(layer.nodes), layer in shared
            look = seen[layer.data.name or ""].shape
            key = (layer.shape, look, layer.weight.dtype, kind, count, kept)
            if key not in known:
                known[key] = _cost(space, clock, layer, kind, seen, kept)
            own.append(known[key])
        found.append(own)
        tell(done + 1, len(space.layers))
    return found


def _cost(
    space: WeightSpace,
    clock: Clock,
    layer: Layer,
    kind: Kind,
    seen: Mapping[str, Seen],
    shared: bool,
) -> LayerCost | None:
    part = _plain(space.linear, layer, seen)
    if kind == FLOAT:
        # What others read too is in the file anyway.
        size = 0 if shared else _bytes(part.graph)
    else:
        written = _written(space, part, kind)
        if written is None:
            return None
        part = written
        size = _bytes(part.graph)
    ms = clock.milliseconds(part)
    if ms is None and kind != FLOAT:
        return None
    return LayerCost(size, (ms or 0.0) * len(layer.nodes))


def _plain(graph: Graph, layer: Layer, seen: Mapping[str, Seen]) -> Part:
    """The layer in float, with the Transpose of its weight where there is one."""
    producer = layer.weight.producer()
    nodes = [layer.node] if producer is None else [producer, layer.node]
    name = layer.data.name or ""
    return make_part(graph, nodes, [layer.node.outputs[0]], {layer.data: name}, seen)


def _written(space: WeightSpace, part: Part, kind: Kind) -> Part | None:
    """The layer with its weight in codes, rounded to nearest; None where no form takes it."""
    job = space.job
    assert kind.bits is not None
    own = rounded_weights(kind.bits, kind.group)
    options = {name: dict(values) for name, values in job.recipe.passes.items()}
    options["weight_only"] = options.get("weight_only", {}) | own
    graph, context = clone(part.graph), space.context_without_data
    try:
        passes = flow.quantizing_passes(job.precision, options, job.target)
        stages = Pipeline(passes).run(graph, context)
    except QGraphError:
        return None
    if not any(stage.report.changed for stage in stages if stage.name == "weight_only"):
        return None
    return keyed(Part(graph, part.feeds, ""))


def _bytes(graph: Graph) -> int:
    return sum(v.const_value.nbytes for v in graph.initializers if v.const_value is not None)


def _shared(space: WeightSpace) -> set[Layer]:
    """Layers whose weight something else reads too, such as the Gather of an embedding."""
    found = set()
    for layer in space.layers:
        value = layer.weight
        readers = {node for node in space.linear.readers(value)}
        producer = value.producer()
        if producer is not None and producer.inputs[0] is not None:
            readers |= set(space.linear.readers(producer.inputs[0])) - {producer}
        if readers - set(layer.nodes):
            found.add(layer)
    return found


def names_of(layers: Sequence[Layer]) -> list[str]:
    """Names of the layers' inputs."""
    return list(dict.fromkeys(layer.data.name or "" for layer in layers))
