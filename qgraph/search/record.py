"""What a search leaves in the artifact beside the promise: `search.json`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from qgraph.search.mixes import Mixes
from qgraph.search.pareto import Row
from qgraph.search.parts import PROOF, SEARCH
from qgraph.search.proof import Proof
from qgraph.search.ways import FLOAT
from qgraph.search.whole import Round
from qgraph.search.workspace import Workspace

if TYPE_CHECKING:
    from qgraph.search.found import Found


def search_json(space: Mixes, found: "Found", front: Sequence[Row], proof: Proof) -> str:
    """Return units with losses and times, what was verified, and how long each step took."""
    content = {
        "units": _units(space, found, proof),
        "verified": _verified(space, found),
        "whole": whole_rows(space, found.first, proof, space.candidates.notes),
        "front": list(front),
        "samples": {
            "calibration": len(space.parts.calibration),
            "sensitivity": len(space.parts.sensitivity),
            "search": len(space.judge.theirs),
            "proof": proof.promise.samples,
        },
        "estimated": proof.round.estimated,
        **effort(space),
    }
    return json.dumps(finite(content), indent=1)


def effort(space: Workspace) -> dict[str, Any]:
    """Return the time of each step, also of all in runs of the original over all the data."""
    whole = space.judge.seconds / (SEARCH * (1 - PROOF))  # the original ran on one part of the data
    evaluations = sum(space.seconds.values()) / max(whole, 1e-9)
    return {
        "seconds": {step: round(seconds, 3) for step, seconds in space.seconds.items()},
        "plain_seconds": round(space.judge.seconds, 4),
        "plain_evaluations": round(evaluations, 1),
    }


def _units(space: Mixes, found: "Found", proof: Proof) -> list[dict[str, Any]]:
    ways = None if proof.whole.ways is None else dict(proof.whole.ways)
    if proof.whole.name == FLOAT:
        ways = dict.fromkeys((unit.name for unit in space.units), FLOAT)
    rows = []
    for unit in space.units:
        row: dict[str, Any] = {"name": unit.name, "op": unit.node.op_type}
        if ways is not None:
            row["precision"] = ways[unit.name]
        if found.sensitivity is not None:
            row["loss"] = float(found.sensitivity.loss[unit.index])
            row["sqnr_db"] = float(found.sensitivity.sqnr[unit.index])
            row["result_loss"] = float(found.sensitivity.written[unit.index])
            row["estimated"] = not bool(found.sensitivity.carried[unit.index])
            if found.sensitivity.drop is not None:
                row["drop"] = float(found.sensitivity.drop[unit.index])
        if found.costs is not None:
            cost = found.costs.units[unit.index]
            row |= {"float_ms": cost.plain, "int8_ms": cost.coded}
            row["ms_estimated"] = bool(proof.round.estimated)
        if found.problem is not None:
            row["ways"] = [
                {"way": option.name, "loss": option.loss, "ms": option.time, "bytes": option.bytes}
                for option in found.problem.units[unit.index]
            ]
        rows.append(row)
    return rows


def _verified(space: Mixes, found: "Found") -> list[dict[str, Any]]:
    if found.refined is None:
        return []
    return [
        {
            "units_in_integers": point.coded,
            "predicted_loss": point.choice.loss,
            "predicted_ms": point.choice.time,
            "ways": dict(space.ways(point.choice)),
            **asdict(point.verdict),
        }
        for point in found.refined.points
    ]


def whole_rows(
    space: Workspace, first: Round | None, proof: Proof, notes: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What became of every whole model: times, sizes and drops, or why there are none."""
    rounds = [proof.round, *([first] if first is not None else [])]
    timed = {each.whole.name: each for round_ in reversed(rounds) for each in round_.timed}
    rows: list[dict[str, Any]] = []
    for name, each in timed.items():
        row: dict[str, Any] = {
            "name": name,
            "precision": each.whole.precision,
            "engine": str(each.engine),
        }
        row |= {"estimated": bool(proof.round.estimated)}
        row |= {"p50_ms": each.p50_ms, "bytes": each.bytes, "rounded_only": each.whole.draft}
        verdict = space.verdicts.get(f"{name} {each.engine}")
        if verdict is not None:
            row |= {"drop": verdict.drop, "drop_bound": verdict.bound}
        rows.append(row)
    for round_ in rounds:
        failed = {str(each.candidate): each.reason for each in round_.measured if not each.result}
        notes = {**failed, **notes}
    return [*rows, *({"name": name, "reason": reason} for name, reason in notes.items())]


def finite(content: Any) -> Any:
    """Put texts in place of NaN and infinities, which JSON lacks."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [finite(value) for value in content]
    if isinstance(content, float) and not np.isfinite(content):
        return str(content)
    return content
