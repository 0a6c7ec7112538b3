"""`qgraph calibrate`: a model and data in, encodings as a JSON file out."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.commands.options import (
    Data,
    EncodingsFile,
    Exclude,
    Json,
    Memory,
    Quiet,
    Ray,
    RecipeName,
    Samples,
    Settings,
    Verbose,
    Workers,
    complete_target,
    with_memory,
)
from qgraph.commands.output import Output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qgraph.calibration import Calibration

EXAMPLES = """[bold]Examples[/bold]

qgraph calibrate model.onnx --data samples.npz

qgraph calibrate model.onnx --data D --set calibrate.observer=entropy -o entropy.json

qgraph calibrate model.onnx --encodings aimet.json --data D  [dim]# the rest from data[/dim]

qgraph compile model.onnx --data D --encodings model.encodings.json"""


def command(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL.onnx", help="The trained model.")],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE.json", help="Default: MODEL.encodings.json."),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What the encodings are for.", autocompletion=complete_target
        ),
    ] = "cpu",
    data: Data = None,
    samples: Samples = None,
    recipe: RecipeName = None,
    exclude: Exclude = None,
    settings: Settings = None,
    memory: Memory = None,
    workers: Workers = None,
    ray: Ray = None,
    encodings: EncodingsFile = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find the encodings that `compile` would use, and write them as JSON.

    The file has one line a tensor: type, scale, zero point, range and the reason. Edit it and give
    it to `compile --encodings`. Ranges are cached and interrupted runs go on where they stopped;
    QGRAPH_CACHE moves the cache, or switches it off with the value `off`.
    """
    from qgraph.calibration import calibrate, default_output
    from qgraph.commands.progress import ConsoleListener
    from qgraph.encodings_json import check_file

    out = Output.begin(ctx, verbose, quiet, as_json)
    place = Path(output) if output is not None else default_output(model)
    check_file(place)
    listener = ConsoleListener(out)
    try:
        with listener:
            found = calibrate(
                model,
                data=data,
                target=target,
                recipe=recipe,
                samples=samples,
                exclude=exclude or [],
                settings=with_memory(settings, memory),
                encodings=encodings,
                workers=workers,
                ray=ray,
                listener=listener,
            )
        found.save(place)
        _report(out, found, place, listener)
    finally:
        for line in listener.untold():
            out.warn(line)


def _report(out: Output, found: "Calibration", place: Path, listener: Any) -> None:
    if out.shared.json:
        listener.untold()  # they are in the document
        notes = [line for stage in found.stages for line in stage.report.notes]
        head = {"encodings": str(place), "warnings": found.warnings, "notes": notes}
        out.document({**head, **found.document})
    elif not out.shared.quiet:
        out.show(*_summary(found, place, out.verbose > 0))


def _summary(found: "Calibration", place: Path, verbose: bool) -> "list[RenderableType]":
    from qgraph import report, text

    document = found.document
    tensors = document["tensors"]
    shown: list[RenderableType] = []
    stage = next(each for each in found.stages if each.name == "calibrate")
    if verbose:
        shown += [report.heading("Encodings"), _table(tensors)]
    rows = [
        ("calibrated", f"{document['model']['name']}, {document['target']}"),
        ("tensors", f"{len(tensors)} in {_types(tensors)}" if tensors else "none"),
        ("observer", document["calibration"]["observer"]),
        *(("from", line) for line in stage.report.notes),
        *(
            ("speed", line)
            for line in stage.report.details
            if " a second" in line and "then" not in line
        ),
        ("encodings", str(place)),
    ]
    data = document["data"]
    if data is not None and data.get("samples") is not None:
        rows.insert(2, ("data", f"{text.counted(data['samples'], 'sample')} of {data['source']}"))
    return [*shown, report.heading("Result"), report.facts(rows)]


def _types(tensors: list[Mapping[str, Any]]) -> str:
    return ", ".join(sorted({each["dtype"] for each in tensors}))


def _table(tensors: list[Mapping[str, Any]]) -> "RenderableType":
    from qgraph import report

    rows = [
        (
            each["name"],
            each["dtype"],
            f"{each['scale']:.6g}",
            each["zero_point"],
            "[{:.6g}, {:.6g}]".format(*each["range"]),
            each["reason"],
        )
        for each in tensors
    ]
    columns = ("tensor", "type", "scale", "zero point", "range", "reason")
    return report.table(columns, rows, right="scale")
