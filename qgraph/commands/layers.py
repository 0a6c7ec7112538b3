"""`qgraph layers`: what the engine really runs, beside what was planned."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.commands.options import (
    EngineOption,
    Json,
    Model,
    Quiet,
    Samples,
    Verbose,
    complete_engine,
)
from qgraph.commands.output import Output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qgraph.runnable import Runnable
    from qgraph.runtime.backend import Session
    from qgraph.runtime.compare import OutputComparison
    from qgraph.runtime.layers import Mapped

EXAMPLES = """[bold]Examples[/bold]

qgraph layers model.int8

qgraph layers model.int8 --data test.npz --compare  [dim]# where the numbers part[/dim]

qgraph layers model.onnx --engine onnxruntime-cuda --json | jq '.layers[0]'"""

_FIRST = 20


def command(
    ctx: typer.Context,
    model: Model,
    data: Annotated[
        str,
        typer.Option("--data", metavar="D", help="Samples, as `qgraph run` takes them."),
    ] = "random",
    samples: Samples = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Engine; default: the artifact's, or onnxruntime-cpu.",
            autocompletion=complete_engine,
        ),
    ] = None,
    option: EngineOption = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Compare every result with onnxruntime's, unoptimised. Results that are handed "
            "out are not fused away, so this judges numbers, not speed.",
        ),
    ] = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show the layers that an engine runs: precision, nodes fused, time; or compare their results.

    Layers that did not run in the precision planned come first, then the slowest.
    """
    from dataclasses import replace

    from qgraph.commands.opening import data_for
    from qgraph.runnable import runnable
    from qgraph.runtime.layers import layers_of, map_layers
    from qgraph.runtime.options import read_options

    out = Output.begin(ctx, verbose, quiet, as_json)
    chosen = runnable(model, engine, own=read_options(option or []))
    plan = planned(Path(model))
    profiled = replace(chosen, options={**chosen.options, "profile": not compare})
    with profiled.open() as session:
        feeds = [dict(each) for each in data_for(session, data, samples or 1, None, chosen)]
        name = session.engine
        if not compare:
            nodes = [node.name or "" for node in chosen.structure().walk()]
            mapped = map_layers(layers_of(session, feeds[0], [*nodes, *plan]), plan)
    found: dict[str, Any] = {"model": model, "engine": name}
    if compare:
        from qgraph.runtime.compare_layers import compare_layers

        compared = compare_layers(chosen.model, feeds, opener(chosen, feeds[0]))
        found["results"] = [each.as_json() for each in compared]
        out.emit(found, *comparison(compared, name, all_of_them=bool(out.verbose)))
        return
    found["layers"] = [as_document(each) for each in mapped]
    out.emit(found, *table(mapped, name, all_of_them=bool(out.verbose)))


def planned(path: Path) -> dict[str, str]:
    """Return each node's precision by name; nothing for a model that is no artifact."""
    from qgraph.artifact import EXPLAIN, MANIFEST, Artifact

    if not (path / MANIFEST).is_file():
        return {}
    nodes = Artifact.load(path).read_json(EXPLAIN)["nodes"]
    return {name: entry[0] for name, entry in nodes.items()}


def opener(run: "Runnable", feeds: Mapping[str, Any]) -> "Callable[[Path], Session]":
    """Return what opens another model in the same engine, built first where that builds."""
    from qgraph.runtime import backend
    from qgraph.runtime.backend import EngineOptions
    from qgraph.runtime.builder import Builder, BuildRequest

    engine, options = backend(run.engine), EngineOptions(**run.options)

    def open_it(model: Path) -> "Session":
        if isinstance(engine, Builder):
            shapes = {name: array.shape for name, array in feeds.items()}
            engine.write(engine.build(model, BuildRequest(shapes, None)), model)
        return engine.open(model, options)

    return open_it


def as_document(mapped: "Mapped") -> dict[str, Any]:
    """Return one layer as JSON values."""
    layer = mapped.layer
    return {
        "name": layer.name,
        "kind": layer.kind,
        "nodes": list(layer.nodes),
        "planned": mapped.planned,
        "as_planned": mapped.as_planned,
        "reads": list(layer.reads),
        "writes": list(layer.writes),
        "fused": layer.fused,
        "reformats": layer.reformats,
        "kernel": layer.tactic,
        "time_us": layer.time_us,
    }


def table(mapped: "Sequence[Mapped]", engine: str, *, all_of_them: bool) -> "list[RenderableType]":
    """Return what people read of the layers."""
    from qgraph import report, text

    total = sum(each.layer.time_us or 0.0 for each in mapped)
    rows = [
        (
            each.layer.kind or each.layer.name,
            " + ".join(each.layer.nodes) or each.layer.name,
            each.planned + ("" if each.as_planned else " (missed)"),
            f"{' '.join(each.layer.reads)} -> {' '.join(each.layer.writes)}",
            each.layer.tactic,
            "" if each.layer.time_us is None else f"{each.layer.time_us:.1f}",
            "" if not each.layer.time_us else f"{each.layer.time_us / total:.1%}",
        )
        for each in mapped
    ]
    missed = sum(not each.as_planned for each in mapped)
    reformats = sum(each.layer.reformats for each in mapped)
    head = (
        f"{text.counted(len(mapped), 'layer')} in {engine}, {total / 1e3:.3f} ms; "
        f"{reformats} only convert; {missed} did not run in the precision planned"
    )
    columns = ("layer", "nodes", "planned", "types", "kernel", "us", "share")
    return [head, *_cut(report.table, columns, rows, "us share", all_of_them)]


def comparison(
    found: "Sequence[OutputComparison]", engine: str, *, all_of_them: bool
) -> "list[RenderableType]":
    """Return what people read of the results, in the order in which they are computed."""
    from qgraph import report, text

    rows = [
        (
            each.name,
            "" if each.sqnr_db is None else f"{each.sqnr_db:.1f}",
            report.number(each.max_abs),
        )
        for each in found
    ]
    head = (
        f"{text.counted(len(found), 'result')} of {engine} beside onnxruntime's, unoptimised: signal to "
        "noise, and the largest error"
    )
    columns = ("result", "dB", "error")
    return [head, *_cut(report.table, columns, rows, "dB error", all_of_them)]


def _cut(
    draw: Any, columns: Sequence[str], rows: Sequence[Any], right: str, all_of_them: bool
) -> "list[RenderableType]":
    shown = rows if all_of_them else rows[:_FIRST]
    left = len(rows) - len(shown)
    return [draw(columns, shown, right=right), *([f"{left} more: pass -v"] if left else [])]
