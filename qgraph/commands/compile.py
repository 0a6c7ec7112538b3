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
    Shapes,
    Sm,
    Symmetric,
    Verbose,
    Workers,
    complete_pass,
    complete_precision,
    complete_target,
    with_engine,
    with_memory,
    with_weights,
)
from qgraph.commands.output import Output
from qgraph.commands.promise import (
    POINTS,
    Assign,
    CostsFile,
    DeviceName,
    Label,
    MaxDrop,
    MaxLatency,
    MaxSize,
    MetricName,
    MetricOutput,
    Optimize,
    Pareto,
    Pick,
    check,
    front_table,
)
from qgraph.errors import AccuracyError, UsageError

if TYPE_CHECKING:
    from qgraph.pipeline import Stage

EXAMPLES = """[bold]Examples[/bold]

qgraph compile model.onnx --data samples.npz

qgraph compile model.onnx --data images/ --recipe imagenet-half -o out/

qgraph compile model.onnx --precision fp16

qgraph compile decoder.onnx --precision int4 --data windows.npz --group 32

qgraph compile model.onnx --data images/ --recipe imagenet-half --io uint8

qgraph compile model.onnx --data D --target tensorrt --shapes 'x:1x3x224x224,8x3x224x224,32x3x224x224'

qgraph compile model.onnx --data D --encodings model.encodings.json

qgraph compile model.onnx --data D --exclude 'head*' --set plan.keep_last=true

qgraph compile model.onnx --data labelled.npz --max-drop 0.5% --metric top1

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
            metavar="fp32|fp16|bf16|fp8|int8|int8-dynamic|w8a16|int4|int8-weights|...",
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
    shapes: Shapes = None,
    sm: Sm = None,
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
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            metavar="",
            help="Build the precision asked for even where the target runs another one faster.",
        ),
    ] = False,
    max_drop: MaxDrop = None,
    metric: MetricName = None,
    optimize: Optimize = "latency",
    max_size: MaxSize = None,
    max_latency: MaxLatency = None,
    assign: Assign = None,
    pareto: Pareto = False,
    pick: Pick = None,
    costs: CostsFile = None,
    device: DeviceName = None,
    label: Label = None,
    metric_output: MetricOutput = None,
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

    With --max-drop, --max-size or --max-latency it searches which layers run in integers, with
    --precision int4 how many bits each layer's weight gets, and the artifact has a promise with the
    measurement that proves it.
    """
    from qgraph.commands.progress import ConsoleListener
    from qgraph.compiler import compile as compile_model
    from qgraph.debug import Stopped
    from qgraph.target import WEIGHT_ONLY

    out = Output.begin(ctx, verbose, quiet, as_json)
    asks = (
        max_drop,
        metric,
        max_size,
        max_latency,
        assign,
        pick,
        label,
        metric_output,
        costs,
        device,
    )
    if pareto or optimize != "latency" or any(each is not None for each in asks):
        check(
            data,
            {
                "--precision": precision not in (None, "int8", *WEIGHT_ONLY),
                "--bits": bits,
                "--group": group,
                "--symmetric": symmetric,
                "--batch": batch,
                "--shapes": shapes,
                "--sm": sm,
                "--force": force,
                "--encodings": encodings,
                "--io": io,
                "--io-outputs": io_outputs,
                "--dump-ir": dump_ir,
                "--print-after": print_after,
                "--time-passes": time_passes,
                "--stop-after": stop_after,
                "--verify": verify,
            },
        )
        _search(
            out,
            ConsoleListener(out),
            model,
            metric=metric or "agreement",
            label=label,
            metric_output=metric_output,
            data=data,
            max_drop=max_drop,
            optimize=optimize,
            max_size=max_size,
            max_latency=max_latency,
            output=output,
            target=target,
            precision=precision or "int8",
            recipe=recipe,
            samples=samples,
            exclude=exclude or [],
            assign=assign or [],
            settings=with_memory(settings, memory),
            points=POINTS if pareto else 0,
            pick=pick,
            costs=costs,
            device=device,
            workers=workers,
            ray=ray,
        )
        return
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
                settings=with_memory(with_engine(lines, shapes, sm), memory),
                encodings=encodings,
                io=io,
                io_outputs=io_outputs,
                hooks=hooks,
                workers=workers,
                ray=ray,
                listener=listener,
                force=force,
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


def _search(
    out: Output,
    listener: Any,
    model: str,
    *,
    metric: str,
    label: str | None,
    metric_output: str | None,
    **options: Any,
) -> None:
    """Compile within a budget."""
    from qgraph.metrics import metric as find_metric
    from qgraph.search import compile_within

    chosen = find_metric(metric, output=metric_output, label=label)
    try:
        with listener:
            artifact = compile_within(model, metric=chosen, listener=listener, **options)
        _summarize(out, artifact.path, listener, [])
    except AccuracyError as error:
        if error.where and not out.shared.json:
            _summarize(out, Path(error.where), listener, [])
        raise
    finally:
        for line in listener.untold():
            out.warn(line)


def _summarize(out: Output, folder: Path, listener: Any, stages: "list[Stage]") -> None:
    from qgraph.artifact import Artifact
    from qgraph.commands.summary import render

    artifact = Artifact.load(folder)
    manifest = artifact.manifest.model_dump(mode="json")
    front = (artifact.read_json("search.json") or {}).get("front", [])
    if out.shared.json:
        listener.untold()  # they are in the manifest
        out.document(
            {
                "artifact": str(folder),
                "model": str(folder / "model.onnx"),
                **manifest,
                **({"front": front} if front else {}),
            }
        )
        return
    if out.shared.quiet:
        return
    # Who saw them on the terminal need not see them again.
    told = listener.live and out.stdout.is_terminal
    listener.untold()
    out.show(
        *front_table(front),
        *render(
            manifest, folder, [] if told else manifest["warnings"], stages if out.verbose else []
        ),
    )
