"""What is said of each artifact: one row, as text, in a table and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One model file.

    Attributes:
        model: Of what.
        artifact: Which promise or precision it has, or the name of another tool's file.
        engine: Where it runs.
        metric: What scores are of.
        searched: Samples of the search.
        kept: Samples it is scored on.
        original: The original's score on them.
        score: Its own.
        drop: By how much it is worse, in the metric's unit.
        low: Lower end of the drop's 95% interval.
        high: Upper end.
        p10_ms: What one run in ten stays below, milliseconds.
        p50_ms: Median.
        by_fastest: `p10_ms` by that of the fastest.
        notes: What else is to know.
    """

    model: str
    artifact: str
    engine: str
    metric: str
    searched: int
    kept: int
    original: float
    score: float
    drop: float
    low: float
    high: float
    p10_ms: float
    p50_ms: float
    by_fastest: float
    notes: str

    def as_json(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """What the table shows."""
        return (
            self.model,
            self.artifact,
            self.engine,
            f"{self.p10_ms:.3f}",
            f"{self.p50_ms:.3f}",
            f"{self.by_fastest:.2f}",
            f"{self.drop:.4f}",
            f"{self.low:.4f} to {self.high:.4f}",
            self.notes,
        )


def table(rows: Sequence[Row]) -> Table:
    """All rows of a model; the title says what they are scored on."""
    found = Table(
        *("model", "artifact", "runs in", "p10 ms", "p50 ms", "by the fastest"),
        *("drop", "95% interval", "notes"),
    )
    for row in rows:
        found.add_row(*row.cells())
    if rows:
        first = rows[0]
        found.title = (
            f"{first.model}: {first.searched} samples searched with, {first.kept} kept aside, "
            f"where the original has {first.metric} {first.original:.4f}"
        )
    return found
