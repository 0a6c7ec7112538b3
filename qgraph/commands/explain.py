"""`qgraph explain`: why every node and tensor of an artifact has its precision."""

from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from qgraph.commands.options import Json, Quiet, Verbose
from qgraph.commands.output import Output

EXAMPLES = """[bold]Examples[/bold]

qgraph explain model.int8

qgraph explain model.int8 --node '*attention*'

qgraph explain model.int8 --json | jq '.float'"""


def command(
    ctx: typer.Context,
    artifact: Annotated[
        str, typer.Argument(metavar="ARTIFACT", help="A folder that `compile` wrote.")
    ],
    node: Annotated[
        str | None,
        typer.Option("--node", metavar="GLOB", help="Only nodes and tensors of this name."),
    ] = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say for each node its precision and why, and for each float tensor why it stayed float."""
    from qgraph import report
    from qgraph.artifact import EXPLAIN, Artifact

    out = Output.begin(ctx, verbose, quiet, as_json)
    loaded = Artifact.load(artifact)
    manifest = loaded.manifest
    content = _checked(loaded.read_json(EXPLAIN), artifact)
    found: dict[str, Any] = {
        "artifact": artifact,
        "precision": manifest.precision,
        "target": manifest.target,
        "warnings": manifest.warnings,
        **{part: _matching(content[part], node) for part in ("nodes", "quantized", "float")},
        "refused": {stage.name: stage.refused for stage in manifest.stages if stage.refused},
    }
    if not any(content.values()):
        counts = ", ".join(f"{count} in {p}" for p, count in manifest.nodes.items())
        out.emit(found, f"no plan was made for {manifest.precision}: nodes: {counts}")
        return
    if node is not None and not any(found[part] for part in ("nodes", "quantized", "float")):
        out.note(f"nothing is called {node!r}")
    tables = (
        ("Nodes", ("node", "precision", "why"), _rows(found["nodes"])),
        ("Quantized tensors", ("tensor", "type", "why"), _rows(found["quantized"])),
        ("Float tensors", ("tensor", "why it is float"), list(found["float"].items())),
    )
    shown = [
        part
        for title, columns, rows in tables
        if rows
        for part in (report.heading(title), report.table(columns, rows))
    ]
    out.emit(found, *(report.warning(line) for line in manifest.warnings), *shown)


def _checked(content: Any, where: str) -> dict[str, dict[str, Any]]:
    """Return explain.json's three tables, whatever stands in the file."""
    from qgraph.errors import ArtifactError

    if content is None:
        raise ArtifactError("explain.json is missing", where=where, fix="compile it again")
    parts = (
        {name: content.get(name) for name in ("nodes", "quantized", "float")}
        if isinstance(content, dict)
        else {}
    )
    if not parts or not all(isinstance(part, dict) for part in parts.values()):
        raise ArtifactError("explain.json is damaged", where=where, fix="compile it again")
    return {name: dict(part or {}) for name, part in parts.items()}


def _matching(part: dict[str, Any], glob: str | None) -> dict[str, Any]:
    return {name: v for name, v in part.items() if glob is None or fnmatchcase(name, glob)}


def _rows(part: dict[str, Any]) -> list[tuple[str, ...]]:
    return [(name, *map(str, entry)) for name, entry in part.items()]
