"""`qgraph deploy`: an artifact as a server, or plain onnxruntime, wants it."""

from typing import Annotated, Any

import typer

from qgraph.commands.options import Data, Json, Quiet, Verbose
from qgraph.commands.output import Output

EXAMPLES = """[bold]Examples[/bold]

qgraph deploy model.int8 --to triton models/ --name resnet --max-batch 16

qgraph deploy model.fp16 --to triton models/ --name resnet   [dim]# its version 2[/dim]

qgraph deploy model.int8 --to openvino-model-server models/

qgraph deploy model.int8 --to folder handover/

[dim]docs/deploy.md says what is written and what was tried.[/dim]"""


def complete_destination(incomplete: str) -> list[str]:
    """Complete `--to`."""
    from qgraph.deploy import destinations

    return [name for name in destinations() if name.startswith(incomplete)]


def command(
    ctx: typer.Context,
    artifact: Annotated[
        str, typer.Argument(metavar="ARTIFACT", help="A folder that `compile` wrote.")
    ],
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="Where to write: a repository of models, or with `folder` itself."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="SERVER",
            help="triton, openvino-model-server or folder.",
            autocompletion=complete_destination,
        ),
    ],
    data: Data = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name on the server; default: the artifact's."),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option("--version", metavar="N", min=1, help="Version; default: the next one."),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="Of Triton: onnxruntime, tensorrt or openvino; default: as the artifact's engine.",
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            "--max-batch",
            metavar="N",
            min=0,
            max=65536,
            show_default=False,
            help="Largest batch; 0: the first axis is the client's. Default 8 where the model has "
            "a batch axis and the backend takes any size.",
        ),
    ] = None,
    dynamic_batching: Annotated[
        bool | None,
        typer.Option(
            "--dynamic-batching/--no-dynamic-batching",
            show_default=False,
            help="Whether the server puts requests together; default: where batches may be.",
        ),
    ] = None,
    preferred_batch: Annotated[
        str | None,
        typer.Option(
            "--preferred-batch", metavar="4,8", help="Sizes that the server tries to reach."
        ),
    ] = None,
    queue_delay_us: Annotated[
        int | None,
        typer.Option(
            "--queue-delay-us",
            metavar="N",
            min=0,
            help="Microseconds for which a request may wait for others.",
        ),
    ] = None,
    instances: Annotated[
        int | None,
        typer.Option(
            "--instances", metavar="N", min=1, max=1024, help="Copies that run side by side."
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option("--gpus", metavar="0,1", help="GPUs to run on; default: all of them."),
    ] = None,
    version_policy: Annotated[
        str | None,
        typer.Option(
            "--version-policy",
            metavar="POLICY",
            show_default=False,
            help="Versions that are served: latest, latest:2, all or specific:1,3. Default latest.",
        ),
    ] = None,
    warm_up: Annotated[
        str | None,
        typer.Option(
            "--warm-up",
            metavar="zeros|sample|none",
            show_default=False,
            help="What the server runs before it calls the model ready. Default: the sample of "
            "--data, without it zeros where the model takes them.",
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="INPUT:1x3x224x224",
            help="For openvino-model-server: fix an input's dynamic axes; repeatable.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            metavar="",
            help="Deploy what missed its accuracy floor, or was changed since it was compiled.",
        ),
    ] = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write an artifact as a model server, or plain onnxruntime, wants it.

    `triton` and `openvino-model-server` make DIR a repository of models: DIR/NAME/VERSION. A NAME
    that is there already gets one more version, and none that is there is touched. `folder` makes
    DIR the model with a script that needs onnxruntime and numpy alone.

    The first sample of --data serves for warm-up and as an example; without it inputs are made up
    and tried.

    Files are compared with the artifact's hashes first. Everything is written, or nothing.
    """
    from qgraph import report
    from qgraph.deploy import deploy

    out = Output.begin(ctx, verbose, quiet, as_json)
    done = deploy(
        artifact,
        to,
        folder,
        force=force,
        data=data,
        name=name,
        version=version,
        backend=backend,
        max_batch=max_batch,
        dynamic_batching=dynamic_batching,
        preferred_batch=_numbers("--preferred-batch", preferred_batch),
        queue_delay_us=queue_delay_us,
        instances=instances,
        gpus=_numbers("--gpus", gpus),
        version_policy=version_policy,
        warm_up=warm_up,
        shape=tuple(shape) if shape else None,
    )
    found: dict[str, Any] = {
        "to": done.to,
        "folder": str(done.folder),
        "files": [str(path) for path in done.files],
        **done.facts,
        "warnings": done.remarks.warnings,
        "notes": done.remarks.notes,
    }
    for line in done.remarks.warnings:
        out.warn(line)
    for line in done.remarks.notes:
        out.note(line)
    facts = {**done.facts, "how to run it": str(done.folder / "README.md")}
    shown = [str(path) for path in done.files] if out.verbose else []
    out.emit(found, report.facts(facts), *shown)


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Read `4,8`.

    Raises:
        UsageError: It is something else.
    """
    from qgraph.errors import UsageError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise UsageError(f"{option} {text!r} is no list of numbers", fix=f"write {option} 0,1")
    return tuple(int(part) for part in parts)
