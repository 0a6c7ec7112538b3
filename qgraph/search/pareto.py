"""Verified points between all in float and all in integers, for who wants to choose."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qgraph.errors import UsageError
from qgraph.search.judge import Verdict
from qgraph.search.refine import front
from qgraph.search.whole import Timed, Whole, time_whole
from qgraph.search.workspace import Workspace

if TYPE_CHECKING:
    from qgraph.search.run import Found

COLUMNS = (
    *("point", "model", "p50_ms", "relative_time", "bytes", "drop", "drop_low", "drop_high"),
    *("score", "units_in_integers", "predicted_loss", "dominated"),
)
# Times of neighbours differ by little: more than for one model to be chosen.
BUDGET_S = 0.6


@dataclass(frozen=True)
class Row:
    """A point that was built, scored and timed.

    Attributes:
        timed: The model in its fastest engine.
        verdict: What it loses on the samples that are searched with.
        units: Number of units in integers.
        dominated: Whether another one is as fast and loses less, or as good and faster.
    """

    timed: Timed
    verdict: Verdict
    units: int
    dominated: bool

    def as_json(self, number: int) -> dict[str, Any]:
        """Fields by column."""
        return dict(
            zip(
                COLUMNS,
                (
                    number,
                    self.timed.whole.name,
                    round(self.timed.p50_ms, 4),
                    round(self.timed.relative, 4),
                    self.timed.bytes,
                    self.verdict.drop,
                    self.verdict.low,
                    self.verdict.high,
                    self.verdict.score,
                    self.units,
                    self.timed.whole.loss,
                    self.dominated,
                ),
                strict=True,
            )
        )


def measure_front(space: Workspace, found: "Found", count: int) -> list[Row]:
    """Build, score and time the front, fastest first; empty for a count of 0.

    All are timed in the engine that is fastest for the model all in integers.
    """
    problem, first = found.problem, found.first
    ours = None if first is None else first.of("int8")
    if not count or problem is None or ours is None:
        return []
    with space.timing("measuring the front"):
        models = [space.mix(choice) for choice in front(problem, space.goal, count)]
        models = list({model.name: model for model in [*models, space.floating]}.values())
        target, engine = space.job.target, ours.engine.backend
        last = time_whole(target, models, space.sample, BUDGET_S * len(models), engine)
        verdicts = []
        for done, each in enumerate(last.timed):
            verdicts.append(space.verdict(each.whole, each.engine))
            space.job.listener.progress("verifying points", done + 1, len(last.timed))
    pairs = list(zip(last.timed, verdicts, strict=True))
    rows = []
    for timed, verdict in pairs:
        coded = 0 if timed.whole.floats is None else len(space.units) - len(timed.whole.floats)
        beaten = any(_beats(other, (timed, verdict)) for other in pairs)
        rows.append(Row(timed, verdict, coded, beaten))
    return rows


def pick(rows: Sequence[Row], number: int) -> Whole:
    """Return the model of a point, counted from 1.

    Raises:
        UsageError: There is no such point.
    """
    if not 1 <= number <= len(rows):
        raise UsageError(f"there is no point {number}", fix=f"--pick 1 to {len(rows)}")
    return rows[number - 1].timed.whole


def table_csv(rows: Sequence[Row]) -> str:
    """Return the points as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.as_json(number) for number, row in enumerate(rows, 1))
    return text.getvalue()


def _beats(one: tuple[Timed, Verdict], other: tuple[Timed, Verdict]) -> bool:
    mine, theirs = ((each[0].relative, each[1].drop) for each in (one, other))
    return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]
