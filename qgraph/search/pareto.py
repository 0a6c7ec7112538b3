"""Verified points between all in float and what is fastest or smallest, for who wants to choose."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgraph.artifact import Artifact
from qgraph.errors import ArtifactError, UsageError
from qgraph.record import source
from qgraph.search.costs import Engine
from qgraph.search.judge import Verdict
from qgraph.search.whole import Timed, Whole
from qgraph.search.workspace import Workspace

COLUMNS = (
    *("point", "model", "p50_ms", "relative_time", "bytes", "drop", "drop_low", "drop_high"),
    *("score", "units_in_integers", "predicted_loss", "dominated", "estimated"),
)
Pair = tuple[Timed, Verdict]
# Times of neighbours differ by little: more than for one model to be chosen.
BUDGET_S = 0.6


Row = dict[str, Any]
"""A point that was built, scored and timed: `COLUMNS`, and `ways`, by unit what it computes in."""


@dataclass(frozen=True)
class Asked:
    """What the user wants of the front.

    Attributes:
        original: The original's file.
        folder: Where the artifact will be; one that is there may have a front.
        points: How many points to verify; 0 for none.
        pick: Build this one of them in place of the best.
    """

    original: Path
    folder: Path
    points: int = 0
    pick: int | None = None

    @property
    def count(self) -> int:
        """How many points there must be."""
        return max(self.points, self.pick or 0)

    def kept(self) -> list[Row]:
        """Return the front of the artifact that is there, if a point of it is wanted and no new front."""
        return kept(self.folder, self.original) if self.pick is not None and not self.points else []

    def tell(self, rows: Sequence[Row], warn: Callable[[str], None]) -> None:
        """Say it where there is no front although one was wanted."""
        if self.points and not rows:
            warn("no other precision wins anything on this model: there is no front")


def measure(
    space: Workspace,
    models: Sequence[Whole],
    engine: Engine,
    ways: Callable[[Whole], Mapping[str, str]],
    coded: Callable[[str], bool],
) -> list[Row]:
    """Score and time the models of a front, from the least loss on, all in one engine.

    Args:
        space: The search.
        models: The models.
        engine: What runs them.
        ways: Says what each unit of a model computes in.
        coded: Whether that is in integers.
    """
    distinct = list({model.name: model for model in models}.values())
    timed = space.times.whole(distinct, space.sample, BUDGET_S * len(distinct), engine).timed
    pairs: list[Pair] = []
    for done, each in enumerate(sorted(timed, key=lambda each: each.whole.loss)):
        pairs.append((each, space.verdict(each.whole, each.engine)))
        space.job.listener.progress("verifying points", done + 1, len(timed))
    rows = []
    for number, pair in enumerate(pairs, 1):
        own = dict(ways(pair[0].whole))
        count = sum(map(coded, own.values()))
        row = _row(number, pair, pairs, count, estimated=bool(space.times.estimated))
        rows.append({**row, "ways": own})
    return rows


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


def _row(number: int, pair: Pair, pairs: Sequence[Pair], coded: int, *, estimated: bool) -> Row:
    timed, verdict = pair
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
        coded,
        timed.whole.loss,
        any(_beats(other, pair) for other in pairs),
        estimated,
    )
    return dict(zip(COLUMNS, values, strict=True))


def _beats(one: Pair, other: Pair) -> bool:
    mine, theirs = ((each[0].relative, each[1].drop) for each in (one, other))
    return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]
