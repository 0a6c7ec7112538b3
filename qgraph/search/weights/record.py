"""What a search for bits leaves in the artifact beside the promise: `search.json`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from qgraph.search.pareto import Row
from qgraph.search.proof import Proof
from qgraph.search.record import effort, finite, whole_rows
from qgraph.search.weights.kinds import FLOAT, Kind
from qgraph.search.weights.looked import Looked
from qgraph.search.weights.space import WeightSpace, counted


def search_json(space: WeightSpace, found: Looked, front: Sequence[Row], proof: Proof) -> str:
    """Return layers with bits, losses and times, what was verified, and how long each step took."""
    content = {
        "layers": _layers(space, found, proof),
        "verified": _verified(space, found),
        "whole": whole_rows(space, found.first, proof, found.notes),
        "front": list(front),
        "samples": {
            "calibration": len(space.parts.calibration),
            "sensitivity": 0 if found.losses is None else found.losses.samples,
            "search": len(space.judge.theirs),
            "proof": proof.promise.samples,
        },
        **effort(space),
    }
    return json.dumps(finite(content), indent=1)


def taken(space: WeightSpace, proof: Proof) -> tuple[Kind, ...]:
    """How the model that was proved keeps each layer's weight."""
    name = proof.whole.name
    return space.built[name][2] if name in space.built else (FLOAT,) * len(space.layers)


def _layers(space: WeightSpace, found: Looked, proof: Proof) -> list[dict[str, Any]]:
    rows = []
    floats = proof.whole.floats or ()
    for index, (layer, kind) in enumerate(zip(space.layers, taken(space, proof), strict=True)):
        # What the pass left in float after all is told as it is.
        kind = FLOAT if layer.name in floats else kind
        row: dict[str, Any] = {"name": layer.name, "shape": list(layer.shape)}
        row |= {"precision": kind.name, "bits": kind.bits, "group": kind.group}
        row["options"] = _options(space, found, index)
        rows.append(row)
    return rows


def _options(space: WeightSpace, found: Looked, index: int) -> list[dict[str, Any]]:
    rows = []
    for place, kind in enumerate(space.kinds[index]):
        row: dict[str, Any] = {"precision": kind.name}
        if found.losses is not None:
            row |= {
                "own_loss": float(found.losses.local[index][place]),
                "data_loss": float(found.losses.data[index][place]),
                "loss": float(found.losses.output[index][place]),
                "estimated": not bool(found.losses.measured[index][place]),
            }
        cost = found.costs[index][place] if found.costs else None
        if cost is not None:
            row |= {"bytes": cost.bytes, "ms": cost.ms}
        rows.append(row)
    return rows


def _verified(space: WeightSpace, found: Looked) -> list[dict[str, Any]]:
    if found.refined is None:
        return []
    return [
        {
            "precisions": counted(found.kinds(point.choice)),
            "predicted_loss": point.choice.loss,
            "predicted_ms": point.choice.time,
            "predicted_bytes": point.choice.bytes,
            **asdict(point.verdict),
        }
        for point in found.refined.points
    ]
