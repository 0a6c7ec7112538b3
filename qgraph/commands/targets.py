"""`qgraph targets`: what can be compiled for."""

from typing import Any

import typer

from qgraph.commands.options import Json, Quiet, Verbose
from qgraph.commands.output import Output

EXAMPLES = """[bold]Examples[/bold]

qgraph targets -v  [dim]# with the operators that each one runs in integers[/dim]

qgraph compile model.onnx --target cpu --precision int8 --data D"""


def command(
    ctx: typer.Context, verbose: Verbose = 0, quiet: Quiet = False, as_json: Json = False
) -> None:
    """List the targets, their precisions and engines, and whether the engines run here."""
    from rich.console import RenderableType

    from qgraph import report
    from qgraph.runtime import backends
    from qgraph.target import targets

    out = Output.begin(ctx, verbose, quiet, as_json)
    engines = backends()
    listed: list[dict[str, Any]] = []
    for each in targets().values():
        reasons = {
            name: engines[name].unavailable() if name in engines else "not part of this qgraph"
            for name in each.engines
        }
        listed.append(
            {
                "name": each.name,
                "summary": each.summary,
                "precisions": list(each.precisions),
                "default_precision": each.default_precision,
                "engines": [
                    {"name": name, "usable": reason is None, "reason": reason or ""}
                    for name, reason in reasons.items()
                ],
                "no_engine": each.no_engine,
                "integer_operators": [rule.op for rule in each.rules],
                "left_float": dict(each.left_float),
                "variants": {name: list(formats) for name, formats in each.variants.items()},
            }
        )
    shown: list[RenderableType] = [
        report.table(
            ("target", "precisions", "what it is"),
            [(t["name"], ", ".join(t["precisions"]), t["summary"]) for t in listed],
        ),
        report.heading("Engines"),
        report.table(
            ("target", "engine", "here"),
            [
                (t["name"], engine["name"], engine["reason"] or "usable")
                for t in listed
                for engine in t["engines"] or [{"name": "none", "reason": t["no_engine"]}]
            ],
        ),
    ]
    if out.verbose:
        for t in listed:
            if t["variants"]:
                rows = [(f"{t['name']}:{v}", ", ".join(f)) for v, f in t["variants"].items()]
                shown += [report.heading("Variants"), report.table(("target", "computes in"), rows)]
            shown.append(report.heading(f"{t['name']}: integer operators"))
            shown.append(", ".join(t["integer_operators"]))
            shown.append(report.heading(f"{t['name']}: left in float"))
            shown.append(report.table(("operator", "why"), t["left_float"].items()))
    out.emit(listed, *shown)
