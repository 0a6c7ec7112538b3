"""Options of `qgraph compile` that ask for a promise, and how it is shown."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

_PANEL = "Promise: search for the mix of precisions that keeps it"
# Points of `--pareto`.
POINTS = 10

MaxDrop = Annotated[
    str | None,
    typer.Option(
        "--max-drop",
        metavar="0.5%|0.005",
        rich_help_panel=_PANEL,
        help="By how much the score may get worse, in the metric's own unit.",
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        rich_help_panel=_PANEL,
        help="As in `qgraph eval`. Default: agreement with the original, which needs no labels.",
    ),
]
Optimize = Annotated[
    str,
    typer.Option(
        "--optimize",
        metavar="latency|size|memory",
        rich_help_panel=_PANEL,
        help="What is made as small as possible.",
        autocompletion=lambda: ["latency", "size", "memory"],
    ),
]
MaxSize = Annotated[
    str | None,
    typer.Option("--max-size", metavar="10MB", rich_help_panel=_PANEL, help="The largest model."),
]
MaxLatency = Annotated[
    str | None,
    typer.Option(
        "--max-latency", metavar="4ms", rich_help_panel=_PANEL, help="The longest median latency."
    ),
]
Assign = Annotated[
    list[str] | None,
    typer.Option(
        "--assign",
        metavar="PATTERN=int8|int8-dynamic|w8a16|fp32|fp16|fp8|int4:32",
        rich_help_panel=_PANEL,
        help="Precision of nodes or operators that the search may not decide. Repeatable.",
    ),
]
Pareto = Annotated[
    bool,
    typer.Option(
        "--pareto",
        metavar="",
        rich_help_panel=_PANEL,
        help="Also verify points between float and the best mix, as a table and pareto.csv.",
    ),
]
Pick = Annotated[
    int | None,
    typer.Option(
        "--pick",
        metavar="N",
        rich_help_panel=_PANEL,
        help="Build this point of --pareto in place of the best that keeps the promise.",
    ),
]
CostsFile = Annotated[
    str | None,
    typer.Option(
        "--costs",
        metavar="FILE.json",
        rich_help_panel=_PANEL,
        help="Times of units, `costs.json` of a search on another machine.",
    ),
]
DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME|FILE.toml",
        rich_help_panel=_PANEL,
        help="Estimate times for it, where no engine of the target runs here. Default: the target's.",
    ),
]
MetricOutput = Annotated[
    str | None,
    typer.Option(
        "--metric-output", metavar="NAME", rich_help_panel=_PANEL, help="Output that it reads."
    ),
]
Label = Annotated[
    str | None,
    typer.Option("--label", metavar="KEY", rich_help_panel=_PANEL, help="Label that it reads."),
]


def check(data: Any, others: Mapping[str, Any]) -> None:
    """Refuse options that a search does not take, and a search without data.

    Args:
        data: What `--data` says.
        others: Options by name; those that are set do not go with a search.

    Raises:
        UsageError: One of them is set, or there is no data.
    """
    for option, value in others.items():
        if value:
            raise UsageError(
                f"{option} does not go with --max-drop",
                fix="search without it, then compile with --exclude for what stays in float",
            )
    if data is None:
        raise UsageError("a promise is kept on samples", fix="pass --data D, with labels")


def rows(promise: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what the summary says of a promise."""
    if promise is None:
        return []
    found = promise["max_drop"]
    asked = "no bound on the drop" if found is None else f"at most {found:g} worse"
    low, high = promise["interval"]
    measured = (
        f"{_number(promise['original'])} -> {_number(promise['score'])}, worse by "
        f"{_number(promise['drop'])} ({_number(low)} to {_number(high)} at 95%) on "
        f"{promise['samples']} samples that the search has not seen"
    )
    verdict = "holds" if promise["holds"] else "BROKEN: " + "; ".join(promise["broken"])
    shown = [
        ("promise", f"{promise['metric']} {asked}: {verdict}"),
        ("proof", measured),
    ]
    if promise["relative_time"] is not None:
        about = "about " if promise.get("latency_estimated") else ""
        ours = f"{about}{promise['p50_ms']:.3g} ms in {promise['engine']}"
        theirs = f"{promise['float_p50_ms']:.3g} ms of {promise['float_engine']}"
        # Medians of two runs that other work disturbs differ by more than their fastest tenths.
        by = "estimated, not measured" if about else "by the fastest tenth of runs"
        line = f"{ours}, {theirs}; {promise['relative_time']:.2f} times as long, {by}"
        shown.append(("against float", line))
    shown.append(("chosen", promise["reason"]))
    return [*shown, *(("note", note) for note in promise["notes"])]


def front_table(points: Sequence[Mapping[str, Any]]) -> "list[RenderableType]":
    """Return the points of a front as a table."""
    from qgraph import report

    if not points:
        return []
    cells = [
        (
            str(point["point"]) + (" (dominated)" if point["dominated"] else ""),
            f"{point['p50_ms']:.3g}",
            f"{point['relative_time']:.2f}",
            f"{point['bytes'] / 1e6:.2f}",
            _number(point["drop"]),
            f"{_number(point['drop_low'])} to {_number(point['drop_high'])}",
            str(point["units_in_integers"]),
        )
        for point in points
    ]
    estimated = "; times are estimated" if any(p.get("estimated") for p in points) else ""
    columns = ("point", "p50 ms", "relative", "MB", "drop", "95% interval", "int8 units")
    right = "p50 ms relative MB drop int8 units"
    return [
        report.heading(f"Front, on the samples searched with{estimated}"),
        report.table(columns, cells, right=right),
    ]


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value + 0.0:.4g}"
