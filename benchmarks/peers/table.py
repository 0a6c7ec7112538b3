"""Rows of the comparison, and where a peer is ahead."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qgraph.metrics import metrics

HEADS = (
    "package",
    "recipe",
    "SQNR dB",
    "score",
    "times as fast as fp32",
    "file MB",
    "seconds",
    "CPU seconds",
    "peak MB",
    "note",
)


@dataclass
class Row:
    """One quantized file; None is what could not be measured.

    Attributes:
        package: Distribution and version.
        recipe: As the catalogue names it.
        sqnr: Decibels.
        score: Name of a metric and a number.
        speed: Times as fast as float32.
        file_mb: Size of the file, 10^6 bytes.
        seconds: From the model file to the quantized file.
        cpu_seconds: CPU time of that process meanwhile, all threads: steadier under load.
        peak_mb: Peak memory of the quantizing process, 2^20 bytes.
        note: What there is to say.
    """

    package: str
    recipe: str
    sqnr: float | None = None
    score: str = ""
    speed: float | None = None
    file_mb: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_mb: float | None = None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return asdict(self)


def cells(row: Row) -> list[str]:
    """The row as text, in the order of `HEADS`."""
    costs = (row.file_mb, row.seconds, row.cpu_seconds, row.peak_mb)
    texts = (_text(cost, digits) for cost, digits in zip(costs, (1, 1, 1, 0), strict=True))
    sqnr, speed = _text(row.sqnr, 2), _text(row.speed, 2)
    return [row.package, row.recipe, sqnr, row.score, speed, *texts, row.note.replace("|", "/")]


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def line(row: Row) -> str:
    """The row for a terminal, while others still run."""
    named = zip(HEADS[2:], cells(row)[2:], strict=True)
    return f"{row.package}, {row.recipe}: " + ", ".join(f"{k} {v}" for k, v in named if v)


def markdown(rows: Sequence[Row], score: str) -> str:
    """All rows as a table of Markdown; `score` is the float model's."""
    heads = [f"score (fp32 {score})" if head == "score" and score else head for head in HEADS]
    lines = [heads, ["---"] * len(heads), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(each)} |" for each in lines)


def ahead(rows: Sequence[Row], ours: str = "default") -> list[str]:
    """Say of every peer's row in what it is ahead of qgraph's recipe `ours`.

    Higher SQNR and speed are better, and lower size, seconds and memory; of scores what the metric
    says. Equal is not ahead. Rows that qgraph lacks give nothing.
    """
    own = next((row for row in rows if row.package == "qgraph" and row.recipe == ours), None)
    if own is None or own.sqnr is None:
        return []
    found = []
    for row in rows:
        if row.package == "qgraph" or row.sqnr is None:
            continue
        better = [
            f"{head} {text}"
            for head, text, got, have in zip(
                HEADS[2:9], cells(row)[2:9], _merits(row), _merits(own), strict=True
            )
            if got is not None and have is not None and got > have
        ]
        if better:
            found.append(f"{row.package}, {row.recipe} is ahead in: {', '.join(better)}")
    return found


def _merits(row: Row) -> list[float | None]:
    """One number for each of `HEADS[2:9]`, the higher the better."""
    score = None
    if row.score:
        name, number = row.score.split()
        score = float(number) if metrics()[name].better == "higher" else -float(number)
    costs = (row.file_mb, row.seconds, row.cpu_seconds, row.peak_mb)
    return [row.sqnr, score, row.speed, *(None if cost is None else -cost for cost in costs)]
