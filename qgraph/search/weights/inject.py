"""What a rounded weight does to the model's outputs: it takes the float weight's place, and the model runs.

The weights that are tried are inputs of the model, so that it is opened once.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph import onnx_io
from qgraph.data import Feeds
from qgraph.graph import Graph
from qgraph.kv_cache import find_caches
from qgraph.passes.contrib.lowering import lower
from qgraph.passes.weight_only.layers import Layer
from qgraph.runtime import observing_backend_of
from qgraph.runtime.backend import Session
from qgraph.search.prepared import clone
from qgraph.search.weights.local import Drafts
from qgraph.targets.contrib import CONTRIBUTED, NOTHING

# Bytes of the float model's outputs that are held to compare with: so many samples are run.
HELD = 256 << 20


def output_losses(
    graph: Graph,
    layers: Sequence[Layer],
    drafts: Drafts,
    samples: Sequence[Feeds],
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[tuple[int, Any], float]:
    """Return the error energy at the outputs relative to their signal, for each draft alone.

    Args:
        graph: The float graph, linear layers as products; it is not changed.
        layers: Its layers.
        drafts: Rounded weights by index of the layer and kind.
        samples: Samples; as many are run as have outputs of `HELD` bytes, one at least.
        folder: Where the model is written.
        progress: Told how many runs of all samples are done.

    Raises:
        EngineError: The engine refuses the model.
    """
    if not drafts:
        return {}
    numbers = sorted({number for number, _ in drafts})
    model = clone(graph)
    names = _open_weights(model, [layers[number] for number in numbers])
    names_of = dict(zip(numbers, names, strict=True))
    path = folder / "inject.onnx"
    caches = {cache.output for cache in find_caches(graph)}
    outputs = [v.name or "" for v in graph.outputs if (v.name or "") not in caches]
    size = sum(v.const_value.nbytes for v in model.initializers if v.const_value is not None)
    engine = observing_backend_of(size)
    lower(model, CONTRIBUTED.get(engine.name, NOTHING))
    onnx_io.save(model, path)
    types = {number: _type(layers[number]).numpy() for number in numbers}
    plain = {names_of[n]: layers[n].matrix(graph).astype(types[n], copy=False) for n in numbers}
    with engine.open(path) as session:
        reference, used = _reference(session, outputs, plain, samples)
        found = {}
        for done, ((number, kind), draft) in enumerate(drafts.items()):
            given = {**plain, names_of[number]: draft.astype(types[number], copy=False)}
            found[number, kind] = _loss(session, outputs, given, used, reference)
            progress(done + 1, len(drafts))
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()
    return found


def _open_weights(model: Graph, layers: Sequence[Layer]) -> list[str]:
    """Make inputs of the layers' weights; return the inputs' names."""
    nodes = {node.name: node for node in model.nodes()}
    names = []
    for number, layer in enumerate(layers):
        name = model.fresh(f"injected_{number}")
        value = ir.Value(name=name)
        value.shape = ir.Shape(layer.shape)
        value.type = ir.TensorType(_type(layer))
        model.main.inputs.append(value)
        for node in layer.nodes:
            model.set_input(nodes[node.name], 1, value)
        names.append(name)
    model.drop_unread_initializers()
    return names


def _type(layer: Layer) -> ir.DataType:
    return layer.weight.dtype or ir.DataType.FLOAT


def _reference(
    session: Session, outputs: Sequence[str], plain: Feeds, samples: Sequence[Feeds]
) -> tuple[list[dict[str, NDArray[Any]]], list[Feeds]]:
    results: list[dict[str, NDArray[Any]]] = []
    held = 0
    for feeds in samples:
        results.append(dict(session.run({**feeds, **plain}, list(outputs))))
        held += sum(array.nbytes for array in results[-1].values())
        if held >= HELD:
            break
    return results, list(samples[: len(results)])


def _loss(
    session: Session,
    outputs: Sequence[str],
    weights: Feeds,
    samples: Sequence[Feeds],
    reference: Sequence[dict[str, NDArray[Any]]],
) -> float:
    """Energy of the error by that of the signal, the mean of all outputs."""
    noise, signal = np.zeros(len(outputs)), np.zeros(len(outputs))
    for feeds, exact in zip(samples, reference, strict=True):
        got = session.run({**feeds, **weights}, list(outputs))
        for place, name in enumerate(outputs):
            if exact[name].dtype.kind == "f":
                error = (got[name] - exact[name]).reshape(-1)
                noise[place] += float(np.dot(error, error))
                signal[place] += float(np.dot(exact[name].reshape(-1), exact[name].reshape(-1)))
    real = signal > 0
    return float((noise[real] / signal[real]).mean()) if real.any() else 0.0
