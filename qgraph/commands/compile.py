"""`qgraph compile`: a model in, a verified artifact out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.commands.debugging import (
    DebugOptions,
    artifact_folder,
    debug_hooks,
    show_times,
    stop_path,
    stopped_at,
)
from qgraph.commands.options import (
    Batch,
    Bits,
    Data,
    EncodingsFile,
    Exclude,
    Group,
    Json,
    Memory,
    Quiet,
    Ray,
    RecipeName,
    Samples,
    Settings,
    Symmetric,
    Verbose,
    Workers,
    complete_pass,
    complete_precision,
    complete_target,
    with_memory,
    with_weights,
)
from qgraph.commands.output import Output
from qgraph.errors import AccuracyError, UsageError

if TYPE_CHECKING:
    from qgraph.pipeline import Stage

EXAMPLES = """[bold]Examples[/bold]

qgraph compile model.onnx --data samples.npz

qgraph compile model.onnx --data images/ --recipe imagenet-half -o out/

qgraph compile model.onnx --precision fp16

qgraph compile decoder.onnx --precision int4 --data windows.npz --group 32

qgraph compile model.onnx --data images/ --recipe imagenet-half --io uint8

qgraph compile model.onnx --data D --encodings model.encodings.json

qgraph compile model.onnx --data D --exclude 'head*' --set plan.keep_last=true

qgraph compile model.onnx --data D --verify numeric --dump-ir ir/"""

_DEBUG = "Debugging"


def command(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL.onnx", help="The trained model.")],
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="The artifact; default: MODEL.PRECISION."
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(metavar="NAME", help="What to compile for.", autocompletion=complete_target),
    ] = "cpu",
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|fp16|bf16|int8|int8-dynamic|w8a16|int4|int8-weights|...",
            help="Default: the recipe's, int8.",
            autocompletion=complete_precision,
        ),
    ] = None,
    bits: Bits = None,
    group: Group = None,
    symmetric: Symmetric = None,
    batch: Batch = None,
    data: Data = None,
    samples: Samples = None,
    recipe: RecipeName = None,
    exclude: Exclude = None,
    settings: Settings = None,
    memory: Memory = None,
    workers: Workers = None,
    ray: Ray = None,
    encodings: EncodingsFile = None,
    io: Annotated[
        str | None,
        typer.Option(
            "--io",
            metavar="float|uint8|int8",
            help="Type of the inputs: raw images where the recipe has \\[images], else integer codes. "
            "Outputs become 16-bit integers then.",
            autocompletion=lambda: ["float", "uint8", "int8"],
        ),
    ] = None,
    io_outputs: Annotated[
        str | None,
        typer.Option(
            "--io-outputs",
            metavar="float|uint8|int8|uint16|int16",
            help="Type of the outputs; integers have scale and zero point in the metadata.",
            autocompletion=lambda: ["float", "uint8", "int8", "uint16", "int16"],
        ),
    ] = None,
    dump_ir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", rich_help_panel=_DEBUG, help="Write the graph there after every pass."
        ),
    ] = None,
    print_after: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PASS",
            rich_help_panel=_DEBUG,
            help="Print the graph on stderr after PASS, or after `all`; repeatable.",
            autocompletion=complete_pass,
        ),
    ] = None,
    time_passes: Annotated[
        bool,
        typer.Option(
            "--time-passes", metavar="", rich_help_panel=_DEBUG, help="Show each pass's time."
        ),
    ] = False,
    stop_after: Annotated[
        str | None,
        typer.Option(
            metavar="PASS",
            rich_help_panel=_DEBUG,
            help="Stop after PASS and write the graph to MODEL.after-PASS.onnx, or to -o.",
            autocompletion=complete_pass,
        ),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            metavar="structure|onnx|numeric",
            rich_help_panel=_DEBUG,
            help="Check the graph after every pass; numeric also runs it against the original, on the "
            "first sample of --data, else on random values.",
            autocompletion=lambda: ["structure", "onnx", "numeric"],
        ),
    ] = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compile a trained model to the fastest engine that still answers correctly.

    The artifact is a folder: model.onnx, which onnxruntime loads without qgraph, and what was done
    and measured. int8 takes its ranges from --data; part of it is kept out to verify the result.
    """
    from qgraph.commands.progress import ConsoleListener
    from qgraph.compiler import compile as compile_model
    from qgraph.debug import Stopped

    out = Output.begin(ctx, verbose, quiet, as_json)
    lines, precision = with_weights(settings or [], precision, bits, group, symmetric, batch)
    stages: list[Stage] = []
    hooks = debug_hooks(
        DebugOptions(dump_ir, print_after or [], stop_after, verify), stages, model, data, recipe
    )
    stop_at = None if stop_after is None else stop_path(model, stop_after, output)
    listener = ConsoleListener(out)
    try:
        with listener, artifact_folder(output, stop_at) as folder:
            artifact = compile_model(
                model,
                output=folder,
                target=target,
                precision=precision,
                recipe=recipe,
                data=data,
                samples=samples,
                exclude=exclude or [],
                settings=with_memory(lines, memory),
                encodings=encodings,
                io=io,
                io_outputs=io_outputs,
                hooks=hooks,
                workers=workers,
                ray=ray,
                listener=listener,
            )
            if stop_after is not None:
                raise UsageError(
                    f"--stop-after {stop_after}: the pass does not run for this precision",
                    fix="without --stop-after, -v lists the passes that run",
                )
        _summarize(out, artifact.path, listener, stages)
    except Stopped as stopped:
        assert stop_at is not None
        stopped_at(out, stopped, stop_at, stages)
    except AccuracyError as error:
        if error.where and not out.shared.json:
            _summarize(out, Path(error.where), listener, stages)
        raise
    finally:
        for line in listener.untold():
            out.warn(line)
        if time_passes and stages:
            show_times(out, stages)


def _summarize(out: Output, folder: Path, listener: Any, stages: "list[Stage]") -> None:
    from qgraph.artifact import Artifact
    from qgraph.commands.summary import render

    manifest = Artifact.load(folder).manifest.model_dump(mode="json")
    if out.shared.json:
        listener.untold()  # they are in the manifest
        out.document({"artifact": str(folder), "model": str(folder / "model.onnx"), **manifest})
        return
    if out.shared.quiet:
        return
    # Who saw them on the terminal need not see them again.
    told = listener.live and out.stdout.is_terminal
    listener.untold()
    out.show(
        *render(
            manifest, folder, [] if told else manifest["warnings"], stages if out.verbose else []
        )
    )
