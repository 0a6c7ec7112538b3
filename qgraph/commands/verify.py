"""`qgraph verify`: whether an artifact's files are those that were written."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.commands.options import Json, Quiet, Verbose
from qgraph.commands.output import Output

if TYPE_CHECKING:
    from qgraph.file_hashes import Changes

EXAMPLES = """[bold]Examples[/bold]

qgraph verify model.int8

qgraph verify model.int8 --expect 6f0a…   [dim]# the hash that verify printed before[/dim]

qgraph verify models/resnet --strict   [dim]# a model that `qgraph deploy` wrote[/dim]"""


def command(
    ctx: typer.Context,
    artifact: Annotated[
        str,
        typer.Argument(metavar="ARTIFACT", help="A folder that `compile` or `deploy` wrote."),
    ],
    expect: Annotated[
        str | None,
        typer.Option(
            "--expect",
            metavar="SHA256",
            help="Hash that the manifest must have: only it tells a manifest that was rewritten.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", metavar="", help="Added files are errors too.")
    ] = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say whether an artifact's files have changed since they were written.

    Every file is compared with the hash in the manifest. The manifest can't hold its own hash: it
    is printed, to be kept elsewhere and given with --expect. Exit status: 0 nothing has changed, 1
    something has. Files that were added are shown and count with --strict only.
    """
    from pathlib import Path

    from qgraph import report
    from qgraph.ledger import read_ledger
    from qgraph.text import counted, size

    out = Output.begin(ctx, verbose, quiet, as_json)
    _check_hash(expect)
    ledger = read_ledger(Path(artifact))
    found = ledger.changes()
    rewritten = expect is not None and expect.lower() != ledger.sha256
    failed = found.broken or rewritten or (strict and bool(found.added))
    document: dict[str, Any] = {
        "artifact": artifact,
        "intact": not failed,
        "changed": found.changed,
        "missing": found.missing,
        "added": found.added,
        "unchanged": found.intact,
        "manifest": {"file": ledger.name, "sha256": ledger.sha256, "expected": expect},
    }
    total = sum(record.bytes or 0 for record in ledger.files.values())
    head = f"{artifact}: {counted(len(found.intact), 'file')}, {size(total)}, as written"
    if failed or found.added:
        head = f"{artifact}: {_summary(found)}"
    shown: list[Any] = [head]
    if rows := _rows(found, out.verbose > 0):
        shown.append(report.table(("file", "what"), rows))
    shown.append(f"{ledger.name}: sha256 {ledger.sha256}")
    if rewritten:
        shown.append(report.warning(f"{ledger.name} is not the one expected, {expect}"))
    out.emit(document, *shown)
    raise typer.Exit(1 if failed else 0)


def _check_hash(text: str | None) -> None:
    from qgraph.errors import UsageError

    if text is not None and (len(text) != 64 or set(text.lower()) - set("0123456789abcdef")):
        raise UsageError(
            f"--expect {text!r} is no SHA-256", fix="give the 64 digits that `qgraph verify` prints"
        )


def _summary(found: "Changes") -> str:
    counts = {
        "changed": len(found.changed),
        "missing": len(found.missing),
        "added": len(found.added),
        "as written": len(found.intact),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _rows(found: "Changes", verbose: bool) -> list[tuple[str, str]]:
    rows = list(found.changed.items())
    rows += [(name, "is missing") for name in found.missing]
    rows += [(name, "was added") for name in found.added]
    if verbose:
        rows += [(name, "as written") for name in found.intact]
    return rows
