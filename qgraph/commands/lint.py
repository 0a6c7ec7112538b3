"""`qgraph lint`: what a target would refuse, run in float or not fuse, before anything is built."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.commands.options import Json, Model, Quiet, Verbose, complete_target
from qgraph.commands.output import Output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qgraph.lint import Finding, Fixed, Linted

EXAMPLES = """[bold]Examples[/bold]

qgraph lint model.onnx --target tensorrt

qgraph lint model.onnx --target tensorrt --fix  [dim]# writes model.fixed.onnx[/dim]

qgraph lint model.onnx --target cpu --engine openvino --json | jq .findings"""

_FIRST = 5


def command(
    ctx: typer.Context,
    model: Model,
    target: Annotated[
        str,
        typer.Option(
            "--target", metavar="T", autocompletion=complete_target, help="Hardware to check for."
        ),
    ] = "cpu",
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", metavar="E", help="Only this engine of the target; repeatable."),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Apply every rewrite that is safe; write a new model.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="OUT", help="Where --fix writes; default MODEL.fixed.onnx."
        ),
    ] = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """List what the target would refuse, run in float or not fuse, with the rule and its source.

    Nothing is built. The exit status is 0 where nothing is refused, 1 where something is; with
    --fix it is about the model that was written. What one of several engines refuses counts as
    a fall back on the others. The model given is never changed, unless -o names it.
    """
    from qgraph import onnx_io
    from qgraph.errors import UsageError
    from qgraph.lint import fix as repair
    from qgraph.lint import lint
    from qgraph.target import target as named_target

    out = Output.begin(ctx, verbose, quiet, as_json)
    if output is not None and not fix:
        raise UsageError("-o needs --fix: without it nothing is written")
    hardware = named_target(target)
    chosen = _engines(hardware, engine)
    graph = onnx_io.load(model)
    found: dict[str, Any] = {"model": model}
    if not fix:
        linted = lint(graph, hardware, chosen)
        out.emit(found | linted.as_json(), *render(linted, out.verbose > 0))
        raise typer.Exit(1 if linted.refused else 0)
    done = repair(graph, hardware, chosen)
    path = Path(output) if output is not None else default_output(model)
    written = onnx_io.save(graph, path) if done.changed or output is not None else []
    document = found | done.before.as_json()
    document["fix"] = done.as_json() | {
        "output": str(path) if written else None,
        "notes": done.notes,
    }
    out.emit(document, *render_fix(done, out.verbose > 0))
    if any(each.changed and each.numerics == "rounding" for each in done.applied):
        out.note("some values moved: the float model compiled for this target is more accurate")
    if written:
        out.note(f"wrote {path}")
    else:
        out.note("nothing was fixed, so nothing was written")
    raise typer.Exit(1 if done.after.refused else 0)


def default_output(model: str) -> Path:
    """Return `<model>.fixed.onnx` beside a model, or beside the folder that holds it."""
    path = Path(model)
    if path.is_dir():
        path = path.resolve()
        return path.parent / f"{path.name}.fixed.onnx"
    return path.with_name(f"{path.stem}.fixed.onnx")


def _engines(hardware: Any, names: list[str] | None) -> list[str] | None:
    from qgraph.errors import unknown_name

    for name in names or ():
        if name not in hardware.engines:
            choices = hardware.engines or ("(it has none)",)
            raise unknown_name(f"engine of {hardware.name}", name, choices)
    return names or None


def render(linted: "Linted", verbose: bool) -> "list[RenderableType]":
    """Return tables for people."""
    from qgraph import report

    shown: list[RenderableType] = [report.warning(note) for note in linted.notes]
    shown.append(_summary(linted))
    shown += _findings(linted.findings, verbose)
    shown += _not_quantized(linted, verbose)
    return shown


def render_fix(done: "Fixed", verbose: bool) -> "list[RenderableType]":
    """Return tables for people: what was found, what was done, what is left."""
    from qgraph import report

    shown = render(done.before, verbose)
    rows = []
    for each in done.applied:
        lines = each.details if verbose else each.details[:_FIRST]
        lines = [*lines, *_more(len(each.details) - len(lines))]
        lines += [f"left alone: {where}: {reason}" for where, reason in each.refused]
        rows.append((each.name, each.changed, each.numerics if each.changed else "", lines))
    shown.append(report.heading("Fixed"))
    if rows:
        columns = ("rewrite", "rewrites", "numerics", "what")
        shown.append(report.table(columns, rows, right="rewrites"))
    shown += [*done.notes, report.heading("Left"), _summary(done.after)]
    return [*shown, *_findings(done.after.findings, verbose)]


def _summary(linted: "Linted") -> str:
    counts = [f"{count} {severity}" for severity, count in linted.counts().items() if count]
    engines = f" ({', '.join(linted.engines)})" if linted.engines else ""
    return f"{linted.target}{engines}: {', '.join(counts) or 'nothing to report'}"


def _findings(findings: "list[Finding]", verbose: bool) -> "list[RenderableType]":
    """Return one row a rule, and the rules' sources below."""
    from qgraph import report

    if not findings:
        return []
    groups: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for each in findings:
        groups[each.severity, each.engine, each.rule].append(each)
    rows, sources = [], {}
    for (severity, engine, rule), group in groups.items():
        places = [_place(each) for each in (group if verbose else group[:_FIRST])]
        places += _more(len(group) - len(places))
        first = group[0]
        rows.append((severity, f"{rule}\n({engine})".split("\n"), len(group), places, _cure(first)))
        sources[f"{engine} {rule}"] = f"{first.what} [{first.source}]"
    return [
        report.heading("Findings"),
        report.table(("severity", "rule", "nodes", "where", "fix"), rows, right="nodes"),
        report.heading("Rules"),
        report.facts(sources),
    ]


def _place(each: "Finding") -> str:
    name = f"{each.op} {each.node}".strip()
    return f"{name}: {each.detail}" if each.detail else name


def _cure(each: "Finding") -> list[str]:
    if each.fix:
        return ["--fix", *each.fix]
    return [each.advice] if each.advice else []


def _more(count: int) -> list[str]:
    return [f"and {count} more (-v shows all)"] if count > 0 else []


def _not_quantized(linted: "Linted", verbose: bool) -> "list[RenderableType]":
    from qgraph import report

    if not linted.unquantized:
        return []
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in linted.unquantized:
        reasons[each.op, each.reason].append(each.node)
    rows = [
        (op, len(nodes), reason, nodes if verbose else [])
        for (op, reason), nodes in reasons.items()
    ]
    return [
        report.heading("Not quantized, if it is compiled to int8"),
        report.table(("operator", "nodes", "why", ""), rows, right="nodes"),
    ]
