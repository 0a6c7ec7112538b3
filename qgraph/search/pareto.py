"""Verified points between all in float and all in integers, for who wants to choose."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgraph.artifact import Artifact
from qgraph.errors import ArtifactError, UsageError
from qgraph.record import source
from qgraph.search.judge import Verdict
from qgraph.search.mixes import Mixes
from qgraph.search.refine import front
from qgraph.search.ways import CODES, FLOAT, way
from qgraph.search.whole import Timed

if TYPE_CHECKING:
    from qgraph.search.found import Found

COLUMNS = (
    *("point", "model", "p50_ms", "relative_time", "bytes", "drop", "drop_low", "drop_high"),
    *("score", "units_in_integers", "predicted_loss", "dominated", "estimated"),
)
Pair = tuple[Timed, Verdict]
# Times of neighbours differ by little: more than for one model to be chosen.
BUDGET_S = 0.6


Row = dict[str, Any]
"""A point that was built, scored and timed: `COLUMNS`, and `ways`, by unit what it computes in."""


def measure_front(space: Mixes, found: "Found", count: int) -> list[Row]:
    """Build, score and time the front, from the least loss on; empty for a count of 0.

    All are timed in the engine that is fastest for the model all in integers, or in half precision where
    none is.
    """
    problem, first = found.problem, found.first
    ours = None if first is None else first.of(CODES) or first.of(space.offered.half)
    if not count or problem is None or ours is None:
        return []
    with space.timing("measuring the front"):
        models = [space.mix(choice) for choice in front(problem, space.goal, count)]
        models = list({model.name: model for model in models}.values())
        budget, engine = BUDGET_S * len(models), ours.engine
        timed = space.times.whole(models, space.sample, budget, engine).timed
        pairs = []
        for done, each in enumerate(sorted(timed, key=lambda each: each.whole.loss)):
            pairs.append((each, space.verdict(each.whole, each.engine)))
            space.job.listener.progress("verifying points", done + 1, len(timed))
    return [_row(space, number, pair, pairs) for number, pair in enumerate(pairs, 1)]


def kept(folder: Path, original: Path) -> list[Row]:
    """Return the front that an artifact of the same model has, empty without one."""
    try:
        artifact = Artifact.load(folder)
        same = artifact.manifest.source.sha256 == source(original, original).sha256
        found = artifact.read_json("search.json") if same else None
    except ArtifactError:
        return []
    rows = found.get("front") if isinstance(found, dict) else None
    return [row for row in rows or [] if isinstance(row, dict) and "ways" in row]


def pick(rows: Sequence[Row], number: int) -> Row:
    """Return a point, counted from 1.

    Raises:
        UsageError: There is no such point.
    """
    if not 1 <= number <= len(rows):
        raise UsageError(
            f"there is no point {number}",
            fix=f"--pick 1 to {len(rows)}" if rows else "this model has no front",
        )
    return rows[number - 1]


def table_csv(rows: Sequence[Row]) -> str:
    """Return the points as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(space: Mixes, number: int, pair: Pair, pairs: Sequence[Pair]) -> Row:
    timed, verdict = pair
    ways = dict(timed.whole.ways or ((unit.name, FLOAT) for unit in space.units))
    values = (
        number,
        timed.whole.name,
        round(timed.p50_ms, 4),
        round(timed.relative, 4),
        timed.bytes,
        verdict.drop,
        verdict.low,
        verdict.high,
        verdict.score,
        sum(way(each).unit == CODES for each in ways.values()),
        timed.whole.loss,
        any(_beats(other, pair) for other in pairs),
        bool(space.times.estimated),
    )
    return {**dict(zip(COLUMNS, values, strict=True)), "ways": ways}


def _beats(one: Pair, other: Pair) -> bool:
    mine, theirs = ((each[0].relative, each[1].drop) for each in (one, other))
    return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]
