"""`qgraph diff`: what differs between two models."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from qgraph.commands.options import Json, Quiet, Verbose
from qgraph.commands.output import Output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qgraph.diff import ModelDiff, Part

EXAMPLES = """[bold]Examples[/bold]

qgraph diff model.onnx model.int8  [dim]# what compiling did[/dim]

qgraph diff old.onnx new.onnx -v  [dim]# every node, not just the first ones[/dim]

qgraph diff a.onnx b.onnx --json | jq .identical"""

_FIRST = 10


def command(
    ctx: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help="An ONNX file or an artifact.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show nodes and constants that were added, removed or changed from A to B.

    Nodes are matched by what they compute first and by names then, so renaming is no difference.
    The exit status is 0 whether they differ or not.
    """
    from qgraph import onnx_io
    from qgraph.diff import diff

    out = Output.begin(ctx, verbose, quiet, as_json)
    found = diff(onnx_io.load(a), onnx_io.load(b))
    out.emit({"a": a, "b": b, **found.as_json()}, *render(found, out.verbose > 0))


def render(found: "ModelDiff", verbose: bool) -> "list[RenderableType]":
    """Return tables for people."""
    from qgraph import report

    if found.identical:
        names = found.nodes.renamed + found.initializers.renamed
        return [f"no difference{f' but {names} names' if names else ''}"]
    shown: list[RenderableType] = [
        f"opset {domain}: {before or 'absent'} -> {after or 'absent'}"
        for domain, (before, after) in found.opsets.items()
    ]
    titles = {"Interface": found.interface, "Nodes": found.nodes, "Constants": found.initializers}
    for title, part in titles.items():
        counts = (
            f"{len(part.added)} added, {len(part.removed)} removed, {len(part.changed)} changed"
        )
        shown.append(report.heading(f"{title}: {counts}, {part.same} the same"))
        shown += _part(part, 0 if verbose else _FIRST, by_kind=title == "Nodes")
    return shown


def _part(part: "Part", limit: int, by_kind: bool) -> "list[RenderableType]":
    from qgraph import report

    shown: list[RenderableType] = []
    if by_kind:
        for word, side in (("added", part.added), ("removed", part.removed)):
            kinds = Counter(kind for _, kind in side).most_common()
            if kinds:
                shown.append(f"{word}: {', '.join(f'{count} {kind}' for kind, count in kinds)}")
    rows: list[tuple[str, str, str, list[str]]] = []
    for sign, side in (("-", part.removed), ("+", part.added)):
        chosen = side[:limit] if limit else side
        rows += [(sign, name, kind, []) for name, kind in chosen]
        if len(chosen) < len(side):
            rows.append((sign, f"and {len(side) - len(chosen)} more (-v shows all)", "", []))
    changed = part.changed[:limit] if limit else part.changed
    rows += [("~", each.name, each.kind, list(each.changes)) for each in changed]
    if len(changed) < len(part.changed):
        rows.append(("~", f"and {len(part.changed) - len(changed)} more (-v shows all)", "", []))
    if rows:
        shown.append(report.table(("", "name", "what", "change"), rows))
    return shown
