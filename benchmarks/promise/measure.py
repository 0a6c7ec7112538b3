"""Builds everything of a model, scores it on what was kept aside and times it in turn."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import qgraph
from benchmarks.promise.beside import others
from benchmarks.promise.data import Work
from benchmarks.promise.rows import Row
from qgraph.artifact import Artifact
from qgraph.errors import AccuracyError, QGraphError
from qgraph.metrics.comparison import Comparison, compare
from qgraph.metrics.metric import Contributions
from qgraph.metrics.scoring import run_sides
from qgraph.runtime import backend
from qgraph.runtime.backend import Session
from qgraph.runtime.bench import bench
from qgraph.search import compile_within

OTHERS = ("int8", "fp32", "bf16", "int8-dynamic")
# What half a point of a share is for metrics that are none.
DROPS = {"spearman": {"0.5%": "0.003", "0.1%": "0.001"}, "cer": {"0.5%": "0.002", "0.1%": "0.001"}}


@dataclass(frozen=True)
class Entry:
    """Something to score and to time."""

    open: Callable[[], Session]
    engine: str
    notes: str = ""


def measure(
    work: Work, drops: Sequence[str], recipe: str, folder: Path, beside: Path | None = None
) -> list[Row]:
    """Return a row for each promise, each precision and each file of others.

    Args:
        work: The model and its data.
        drops: What the promises allow.
        recipe: Of all that is compiled.
        folder: For artifacts.
        beside: Files of others, see `others`.
    """
    entries = {**_promises(work, drops, recipe, folder), **_precisions(work, recipe, folder)}
    sample = work.feeds[0]
    if beside is not None:
        for other in others(beside, work, sample):
            name = other.name if other.name not in entries else f"{other.name}.onnx"
            entries[name] = Entry(other.open, other.way, other.notes)
    with backend("onnxruntime-cpu").open(work.model) as session:
        exact = contributions(session, work)
    scores = {
        name: found for name, each in entries.items() if (found := _score(name, each, work, exact))
    }
    times = bench({name: entries[name].open for name in scores}, sample, seconds=2.0)
    fastest = min(result.p10_ms for result in times)
    rows = []
    for result in times:
        entry, found = entries[result.name], scores[result.name]
        sign = -1 if work.metric.better == "higher" else 1
        low, high = sorted(sign * end + 0.0 for end in found.change.interval)
        row = Row(
            work.name, result.name, entry.engine, work.metric.name, len(work.search), len(exact),
            found.theirs.value, found.ours.value, sign * found.change.value + 0.0, low, high,
            result.p10_ms, result.p50_ms, result.p10_ms / fastest, entry.notes,
        )  # fmt: skip
        print(*row.cells(), sep=" | ", flush=True)
        rows.append(row)
    return rows


def contributions(session: Session, work: Work) -> Contributions:
    """What the samples kept aside contribute."""
    return np.concatenate(
        [
            work.metric.contributions(
                run_sides(session, work.metric.sides, s.feeds), {**s.feeds, **s.labels}
            )
            for s in work.kept
        ]
    )


def _score(name: str, entry: Entry, work: Work, exact: Contributions) -> Comparison | None:
    try:
        with entry.open() as session:
            return compare(work.metric, contributions(session, work), exact)
    except QGraphError as error:
        print(f"note: {work.name} {name}: {error}", file=sys.stderr)
        return None


def _promises(work: Work, drops: Sequence[str], recipe: str, folder: Path) -> dict[str, Entry]:
    found = {}
    for drop in drops:
        asked = DROPS.get(work.metric.name, {}).get(drop, drop)
        name = f"promise {asked}"
        output = folder / name.replace(" ", "-")
        start = time.perf_counter()
        try:
            artifact = compile_within(
                work.model, data=work.search, metric=work.metric, max_drop=asked, recipe=recipe,
                output=output,
            )  # fmt: skip
        except AccuracyError as error:
            print(f"note: {work.name}: {error}", file=sys.stderr)
            artifact = Artifact.load(output)
        seconds = time.perf_counter() - start
        search = json.loads((artifact.path / "search.json").read_text())
        notes = [f"{search['plain_evaluations']:.0f} evaluations, {seconds:.0f} s in all"]
        if artifact.manifest.promise and artifact.manifest.promise.reason:
            notes.append(artifact.manifest.promise.reason)
        found[name] = _entry(artifact, "; ".join(notes))
    return found


def _precisions(work: Work, recipe: str, folder: Path) -> dict[str, Entry]:
    found = {}
    for precision in OTHERS:
        try:
            artifact = qgraph.compile(
                work.model, data=work.feeds, precision=precision, recipe=recipe,
                output=folder / precision,
            )  # fmt: skip
        except AccuracyError:
            artifact = Artifact.load(folder / precision)
        except QGraphError as error:
            print(f"note: {work.name} {precision}: {error}", file=sys.stderr)
            continue
        found[precision] = _entry(artifact)
    return found


def _entry(artifact: Artifact, notes: str = "") -> Entry:
    engine = artifact.manifest.engine
    return Entry(artifact.open, engine.backend if engine else "", notes)
