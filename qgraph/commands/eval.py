"""`qgraph eval`: scores on labelled data, beside the original."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from qgraph.commands.options import (
    Data,
    Json,
    Quiet,
    RecipeName,
    Samples,
    Verbose,
    complete_engine,
)
from qgraph.commands.output import Output
from qgraph.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from qgraph.evaluation import Evaluation

EXAMPLES = """[bold]Examples[/bold]

qgraph eval model.int8 --metric top1 --data labelled.npz

qgraph eval model.onnx model.int8 --metric perplexity --data windows.npz --vs model.onnx

qgraph eval model.int8 --metric top5 --data photos/ --samples 500

qgraph eval model.int8 --metric my_package.scores:word_errors --data my_package.data:lines

[dim]docs/eval.md says what data looks like.[/dim]"""


def complete_metric(incomplete: str) -> list[str]:
    """Complete `--metric`."""
    from qgraph.metrics import metrics

    return [name for name in metrics() if name.startswith(incomplete)]


def command(
    ctx: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(metavar="ARTIFACT|MODEL...", help="Folders from `compile`, ONNX files."),
    ],
    metric: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="top1, top5, agreement, perplexity, spearman, cer, or package.module:function.",
            autocompletion=complete_metric,
        ),
    ],
    data: Data = None,
    vs: Annotated[
        str | None,
        typer.Option(
            "--vs",
            metavar="MODEL",
            help="Compare with this one. Default: the model that the artifact was compiled from.",
        ),
    ] = None,
    samples: Samples = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Engine for all. Default: the artifact's, or onnxruntime-cpu.",
            autocompletion=complete_engine,
        ),
    ] = None,
    recipe: RecipeName = None,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="NAME", help="Output that the metric reads."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="KEY", help="Label that the metric reads."),
    ] = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score artifacts on labelled data, beside the original.

    Intervals are at 95%, from drawing the samples again; that of the change draws the same samples
    for both models. `agreement` needs no labels: it counts how often a classifier decides like the
    original.
    """
    from qgraph.commands.progress import ConsoleListener
    from qgraph.evaluation import evaluate_all
    from qgraph.metrics import metric as find_metric

    out = Output.begin(ctx, verbose, quiet, as_json)
    if data is None:
        raise UsageError("eval needs labelled data", fix="pass --data D")
    listener = ConsoleListener(out)
    try:
        with listener:
            found = evaluate_all(
                models,
                metric=find_metric(metric, output=output, label=label),
                data=data,
                versus=vs,
                samples=samples,
                engine=engine,
                recipe=recipe,
                listener=listener,
            )
    finally:
        for line in listener.untold():
            out.warn(line)
    notes = list(dict.fromkeys(note for each in found for note in each.notes))
    results = [asdict(each) for each in found]
    document = {"metric": metric, "data": data, "warnings": listener.warnings, "results": results}
    out.emit(document, _head(found[0], data), _table(found), *notes)


def _head(first: "Evaluation", data: str) -> str:
    from qgraph.text import counted

    return (
        f"{first.metric} ({first.better} is better), {counted(first.samples, 'sample')} of {data}"
    )


def _table(found: "list[Evaluation]") -> "Table":
    """A row for each original, once, and one for each model."""
    from qgraph import report

    rows: dict[tuple[str, str], list[str]] = {}
    for each in found:
        base = each.versus
        if base is not None:
            cells = [_number(base.score), _interval(base.interval)]
            rows.setdefault((base.model, base.engine), [base.model, base.engine, *cells, "", ""])
        changes = ["", ""]
        if base is not None and base.model != each.model:
            changes = [f"{base.change:+.4f}", _interval(base.change_interval, sign="+")]
        cells = [_number(each.score), _interval(each.interval), *changes]
        rows[each.model, each.engine] = [each.model, each.engine, *cells]
    columns = ["model", "engine", found[0].metric, "95% interval", "change", "95% interval of it"]
    if not any(row[4] for row in rows.values()):
        columns, rows = columns[:4], {key: row[:4] for key, row in rows.items()}
    return report.table(columns, rows.values(), right=f"{found[0].metric} change")


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.4f}"


def _interval(bounds: tuple[float, float], sign: str = "") -> str:
    return " to ".join(_number(bound, sign) for bound in bounds)
