"""`qgraph inspect`: what a model is and what could be done with it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.commands.options import Json, Model, Quiet, Verbose, complete_target
from qgraph.commands.output import Output

if TYPE_CHECKING:
    from rich.console import RenderableType

# Inputs and outputs that are named for each dynamic axis.
_PLACES = 4

EXAMPLES = """[bold]Examples[/bold]

qgraph inspect model.onnx

qgraph inspect model.onnx -v  [dim]# every rewrite and refusal, node by node[/dim]

qgraph inspect model.onnx --target tensorrt

qgraph inspect model.onnx --json | jq .operators"""


def command(
    ctx: typer.Context,
    model: Model,
    target: Annotated[
        str,
        typer.Option(metavar="NAME", help="For what hardware.", autocompletion=complete_target),
    ] = "cpu",
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show operators, parameters, shapes, and what compiling would fuse, quantize and refuse.

    Nothing is written. The rewrites are tried on a copy in memory.
    """
    out = Output.begin(ctx, verbose, quiet, as_json)
    found = examine(model, target)
    out.emit(found, *render(found, out.verbose > 0))


def examine(path: str, target: str = "cpu") -> dict[str, Any]:
    """Return everything that `inspect` shows, as plain data."""
    from pathlib import Path

    from qgraph import inspection, onnx_io
    from qgraph.artifact import MANIFEST, Artifact
    from qgraph.target import target as named_target

    hardware = named_target(target)
    graph = onnx_io.load(path)
    found: dict[str, Any] = {"model": path, **inspection.describe(graph)}
    if (Path(path) / MANIFEST).is_file():
        manifest = Artifact.load(path).manifest
        found["artifact"] = {
            "precision": manifest.precision,
            "target": manifest.target,
            "source": manifest.source.name,
            "created": manifest.created,
        }
    if found["quantized"]:
        return found | {"rewrites": [], "targets": {}}
    found["rewrites"] = inspection.rewrites(graph)
    found["targets"] = {target: inspection.quantizable(graph, hardware)}
    return found


def render(found: dict[str, Any], verbose: bool) -> "list[RenderableType]":
    """Return tables for people."""
    from qgraph import report, text

    parameters = found["parameters"]
    pairs = [
        ("model", found["model"]),
        ("producer", found["producer"] or "unknown"),
        ("opset", ", ".join(f"{domain} {v}" for domain, v in found["opsets"].items())),
        ("parameters", f"{parameters['count']:,} in {text.size(parameters['bytes'])}"),
        ("nodes", f"{found['nodes']:,}"),
    ]
    if found["functions"]:
        pairs.append(("functions", found["functions"]))
    if found["dynamic_axes"]:
        # A decoder's are those of all its caches; the interface below has every shape.
        axes = [
            f"{name} ({text.few(at, _PLACES, ', ')})" for name, at in found["dynamic_axes"].items()
        ]
        pairs.append(("dynamic axes", "; ".join(axes)))
    if "artifact" in found:
        made = found["artifact"]
        what = f"{made['precision']} for {made['target']}, from {made['source']}, {made['created']}"
        pairs.append(("artifact", what))
    pairs += [(f"metadata {key}", value) for key, value in found["metadata"].items()]
    shown: list[RenderableType] = [report.warning(note) for note in found["notes"]]
    shown.append(report.facts(pairs))
    interface = [
        (kind, value["name"], value["dtype"], text.shape(value["shape"]))
        for kind in ("input", "output")
        for value in found[f"{kind}s"]
    ]
    shown += [report.heading("Interface"), report.table(("", "name", "type", "shape"), interface)]
    shown += [
        report.heading("Operators"),
        report.table(("operator", "nodes"), found["operators"].items(), right="nodes"),
    ]
    if found["custom_operators"]:
        names = ", ".join(found["custom_operators"])
        shown.append(f"left alone, because only their engine knows them: {names}")
    if found["quantized"]:
        listed = ", ".join(f"{count} {op}" for op, count in found["quantized"].items())
        shown.append(f"\nAlready quantized ({listed}): compile leaves it intact.")
        return shown
    shown += _rewrites(found["rewrites"], verbose)
    for name, plan in found["targets"].items():
        shown += _plan(name, plan)
    return shown


def _rewrites(stages: list[dict[str, Any]], verbose: bool) -> "list[RenderableType]":
    from qgraph import report

    rows = []
    for stage in stages:
        places = stage["where"] if verbose else {}
        lines = [
            f"{count} x {reason}" + (f" ({', '.join(places[reason])})" if places else "")
            for reason, count in stage["refused"].items()
        ]
        details = [*stage["details"], *lines] if verbose else lines
        marked = f"{len(stage['details'])} marked" if stage["details"] else 0
        rows.append((stage["pass"], stage["changed"] or marked, details))
    columns = ("pass", "rewrites", "rewritten and refused" if verbose else "refused, and why")
    return [
        report.heading("What rewriting would do"),
        report.table(columns, rows, right="rewrites"),
    ]


def _plan(target: str, plan: dict[str, Any]) -> "list[RenderableType]":
    from qgraph import report

    rows: list[tuple[str, int, int, list[str]]] = []
    for op in [*plan["quantized"], *(op for op in plan["float"] if op not in plan["quantized"])]:
        reasons = plan["float"].get(op, {})
        left = sum(reasons.values())
        rows.append((op, plan["quantized"].get(op, 0), left, report.reasons(reasons)))
    columns = ("operator", "int8", "float", "why float")
    return [
        report.heading(f"Target {target}: what int8 would cover"),
        report.table(columns, rows, right="int8 float"),
    ]
