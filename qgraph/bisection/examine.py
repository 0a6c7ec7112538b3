"""Looks for the causes of what units lose, in the values that they read and write."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.bisection import causes
from qgraph.bisection.causes import Cause
from qgraph.encoding import Encoding, dequantize
from qgraph.graph import Graph, Value
from qgraph.runtime.reference import open_reference
from qgraph.search.prepared import Prepared
from qgraph.search.units import Unit

Floats = NDArray[np.floating]


def examine(
    prepared: Prepared, units: Sequence[Unit], model: Path, samples: Sequence[Mapping[str, Any]]
) -> dict[str, list[Cause]]:
    """Find causes.

    Args:
        prepared: The calibrated model.
        units: The units to look at.
        model: The float graph's file.
        samples: Feeds.

    Returns:
        By unit, what is wrong with it, the surest first.
    """
    values = {value.name or "": value for unit in units for value in _values(unit)}
    inputs = {value.name for value in prepared.graph.inputs}
    names = [name for name in values if name not in inputs]
    seen: dict[str, list[Floats]] = {name: [] for name in values}
    with open_reference(model, names) as session:
        for sample in samples:
            found = {**sample, **session.run(sample, names)}
            for name in values:
                seen[name].append(np.asarray(found[name], np.float32))
    return {unit.name: _causes(prepared, unit, seen) for unit in units}


def _values(unit: Unit) -> list[Value]:
    """Activations that a unit reads or writes as codes."""
    read = [value for value in unit.reads.values() if value.const_value is None]
    return [*read, *([unit.writes] if unit.writes is not None else [])]


def _causes(prepared: Prepared, unit: Unit, seen: Mapping[str, list[Floats]]) -> list[Cause]:
    found: list[Cause | None] = []
    lost = [0.0]
    for value in _values(unit):
        name = value.name or ""
        encoding = prepared.encodings.get(name)
        if encoding is None:
            continue
        x = _joined(seen[name])
        flat = x.reshape(-1)
        producer = value.producer()
        found += [
            causes.saturated_range(name, flat, encoding),
            causes.outlier_channel(name, x, 1 if x.ndim == 4 else -1, encoding),
            causes.tail(name, "" if producer is None else producer.op_type, flat, encoding),
        ]
        lost.append(sum(causes.errors(flat, encoding)[:2]) / max(_energy(flat), 1e-300))
    weights = [0.0]
    for index in range(len(unit.node.inputs)):
        quantized = prepared.weights.get((unit.name, index))
        weight = _weight(prepared.graph, unit, index)
        if quantized is None or weight is None:
            continue
        codes = dequantize(quantized.codes, quantized.encoding)
        weights.append(causes.relative_error(weight, codes))
        groups = prepared.graph.attribute(unit.node, "group")
        found.append(causes.depthwise(unit.name, weight, codes, int(groups or 1)))
        found.append(_wide_weights(unit, weight, quantized.encoding))
    sure = [each for each in found if each is not None]
    return sure or [causes.dominant(max(weights), max(lost))]


def _wide_weights(unit: Unit, weight: Floats, encoding: Encoding) -> Cause | None:
    """Tell a channel of inputs whose weights are far wider than the others'."""
    if weight.ndim < 2:
        return None
    axis = encoding.axis
    inputs = 1 if unit.node.op_type == "Conv" else (1 if axis == 0 else 0)
    if weight.shape[inputs] < 4:
        return None
    ranges = causes.channel_ranges(weight, inputs)
    median = float(np.median(ranges[ranges > 0])) if (ranges > 0).any() else 0.0
    worst = int(ranges.argmax())
    if not median or ranges[worst] < causes.OUTLIER * median:
        return None
    return Cause(
        "outlier channel",
        f"the weights of input channel {worst} reach {ranges[worst]:.3g}, those of the median one "
        f"{median:.3g}: a scale for each output channel covers both",
        "--set smooth.enabled=true for MatMul, --set equalize_layers.enabled=true for Conv",
    )


def _weight(graph: Graph, unit: Unit, index: int) -> Floats | None:
    array = graph.array(unit.node.inputs[index])
    return None if array is None else np.asarray(array, np.float32)


def _joined(arrays: Sequence[Floats]) -> Floats:
    """All samples behind one another; only the first where their shapes differ beyond the batch."""
    same = [each for each in arrays if each.shape[1:] == arrays[0].shape[1:] and each.ndim]
    return np.concatenate(same) if same else np.asarray(arrays[0])


def _energy(x: Floats) -> float:
    return float((x.astype(np.float64) ** 2).sum())
