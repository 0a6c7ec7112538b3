"""`qgraph bisect`: which pass and which units lost the accuracy, and why."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.commands.eval import complete_metric
from qgraph.commands.options import Data, Json, Quiet, Verbose
from qgraph.commands.output import Output
from qgraph.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qgraph.bisection import Bisection

EXAMPLES = """[bold]Examples[/bold]

qgraph bisect model.int8 --data samples.npz

qgraph bisect model.int8 --data labelled.npz --metric top1 --max-drop 0.5%

[dim]Exit status: 0 nothing is lost, 1 something is; docs/bisect.md says how it is found.[/dim]"""

_WORST = 10


def command(
    ctx: typer.Context,
    artifact: Annotated[
        str, typer.Argument(metavar="ARTIFACT", help="Folder that `qgraph compile` wrote.")
    ],
    data: Data = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="FILE", help="The original, where it has moved."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="As in `qgraph eval`; default: the outputs' signal to noise.",
            autocompletion=complete_metric,
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            "--max-drop", metavar="0.5%|0.005", help="By how much the metric may get worse."
        ),
    ] = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option(
            "--min-sqnr", metavar="DB", help="Least signal to noise; default: as compiled."
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", metavar="N", min=1, help="Score on at most N; default: 16."),
    ] = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find the pass, then the smallest set of units, that loses an artifact's accuracy, and why."""
    from qgraph.bisection import bisect
    from qgraph.commands.progress import ConsoleListener

    out = Output.begin(ctx, verbose, quiet, as_json)
    if data is None:
        raise UsageError("bisect scores on data", fix="pass --data D, as at the compile")
    listener = ConsoleListener(out)
    try:
        with listener:
            found = bisect(
                artifact,
                data=data,
                model=model,
                metric=metric,
                max_drop=max_drop,
                min_sqnr_db=min_sqnr,
                samples=samples,
                listener=listener,
            )
    finally:
        for line in listener.untold():
            out.warn(line)
    out.emit(asdict(found), *_shown(found, every=bool(out.verbose)))
    if found.first is not None:
        raise typer.Exit(1)


def _shown(found: "Bisection", *, every: bool) -> "list[RenderableType]":
    from qgraph import report

    rows: list[tuple[Any, ...]] = [
        (each.name, each.changed or "", each.score, "" if each.score.holds else "lost")
        for each in found.passes
    ]
    column = _column(found)
    shown: list[RenderableType] = [
        report.heading(f"{found.unit} behind each pass; good enough: {found.floor}"),
        report.table(("pass", "changed", column, ""), rows, right=f"changed {column}"),
    ]
    if found.first is None:
        return [*shown, "nothing is lost"]
    shown.append(f"the first that loses it: {found.first.name}")
    if found.units:
        shown += _units(found, every=every)
    if found.guilty:
        shown += _causes(found)
    elif found.units and found.guilty is None:
        shown.append("no set of units in float brings it back")
    return [*shown, *found.notes]


def _units(found: "Bisection", *, every: bool) -> "list[RenderableType]":
    from qgraph import report

    guilty = set(found.guilty or ())
    listed = found.units
    if not every:
        # Those that lose most alone, in graph order.
        worst = sorted(listed, key=lambda each: _badness(found, each.alone.value))[-_WORST:]
        listed = [each for each in listed if each in worst or each.name in guilty]
    rows = [
        (each.name, each.op_type, each.alone, each.accumulated, "x" if each.name in guilty else "")
        for each in listed
    ]
    head = f"Units in integers, {found.unit}" + ("" if every else ": the worst; -v for all")
    columns = ("unit", "operator", "alone", "accumulated", "to float")
    return [report.heading(head), report.table(columns, rows, right="alone accumulated")]


def _column(found: "Bisection") -> str:
    return "dB" if found.unit.startswith("SQNR") else "drop"


def _badness(found: "Bisection", value: float) -> float:
    return -value if found.unit.startswith("SQNR") else value


def _causes(found: "Bisection") -> "list[RenderableType]":
    from qgraph import report, text

    rows = [
        (name, cause.kind, cause.what, cause.fix)
        for name, causes in found.causes.items()
        for cause in causes
    ]
    count = text.counted(len(found.guilty or ()), "unit")
    return [
        report.heading("Causes"),
        report.table(("unit", "cause", "what", "what may help"), rows),
        f"with {count} in float: {found.restored} ({found.unit})",
        found.command,
    ]
