"""`qgraph bench`: latency, throughput and memory, models in turn in one run."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.commands.options import (
    Data,
    EngineOption,
    Json,
    Model,
    Quiet,
    Verbose,
    complete_engine,
)
from qgraph.commands.output import Output

if TYPE_CHECKING:
    from qgraph.runnable import Runnable
    from qgraph.runtime.bench import BenchResult

EXAMPLES = """[bold]Examples[/bold]

qgraph bench model.int8 --vs model.onnx

qgraph bench model.onnx --engine onnxruntime-cpu --engine openvino

qgraph bench model.onnx --data samples.npz --batch 8 --seconds 10

qgraph bench model.onnx --engine onnxruntime-cuda --option graph=true"""


def command(
    ctx: typer.Context,
    model: Model,
    vs: Annotated[
        list[str] | None,
        typer.Option("--vs", metavar="OTHER", help="Compare with this one; may be repeated."),
    ] = None,
    data: Data = None,
    seconds: Annotated[
        float, typer.Option(min=0.01, metavar="S", help="Time of counted runs for each model.")
    ] = 3.0,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Samples in one run.")] = 1,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Engine; repeat to compare. Default: the artifact's, or onnxruntime-cpu.",
            autocompletion=complete_engine,
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, metavar="N", help="Threads; 0 means all cores.")
    ] = 0,
    option: EngineOption = None,
    memory: Annotated[
        bool, typer.Option(help="Measure peak memory too, in a process of its own.")
    ] = True,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure latency, throughput and peak memory after a warm-up.

    Several models run in turn in short blocks, so that a machine that slows down or speeds up hits
    all of them alike. Without --data, inputs are random. Times are of numpy arrays in and out; where
    the engine computes on a GPU, `on device` is without the copies.
    """
    from qgraph import report
    from qgraph.runtime.options import read_options

    out = Output.begin(ctx, verbose, quiet, as_json)
    runs, results, shape = measure(
        out,
        [model, *(vs or [])],
        list(engine or []),
        data,
        seconds,
        batch,
        threads,
        read_options(option or []),
    )
    if memory:
        results = _with_memory(out, runs, results, shape)
    found = {
        "data": data or "random",
        "batch": batch,
        "seconds": seconds,
        "results": [
            {"model": run.path, **result.as_json()}
            for run, result in zip(runs, results, strict=True)
        ],
    }
    columns = ["model", "engine", "p50 ms", "p90 ms", "p99 ms", "items/s", "runs"]
    on_device = any(result.on_device_ms is not None for result in results)
    on_gpu = any(result.device_memory_bytes is not None for result in results)
    columns += ["on device ms"] * on_device + ["memory"] * memory + ["of device"] * on_gpu
    columns += ["time vs. first"] * (len(runs) > 1)
    pairs = zip(runs, results, strict=True)
    rows = [_row(*pair, memory, on_device, on_gpu)[: len(columns)] for pair in pairs]
    table = report.table(columns, rows)
    for column in table.columns[2:]:
        column.justify = "right"
    if len(runs) == 1:
        out.emit(found, table)
        return
    out.emit(found, table, _verdict(runs, results))


def measure(
    out: Output,
    paths: list[str],
    engines: list[str],
    data: str | None,
    seconds: float,
    batch: int,
    threads: int,
    own: dict[str, Any] | None = None,
) -> "tuple[list[Runnable], list[BenchResult], dict[str, Any]]":
    """Open every model in every engine and time them in turn.

    Returns:
        What ran, its results in the same order, and the feeds.
    """
    from contextlib import ExitStack

    from qgraph.commands.opening import batch_of, data_for
    from qgraph.runnable import runnable
    from qgraph.runtime.bench import bench
    from qgraph.runtime.wrapped import OnDevice

    chosen: list[str | None] = [*engines] or [None]
    runs = [runnable(path, name, threads, own) for path in paths for name in chosen]
    with ExitStack() as stack:
        sessions = [stack.enter_context(run.open()) for run in runs]
        samples = batch if data is None else None
        source = data or "random"
        feeds = batch_of(data_for(sessions[0], source, samples, None, runs[0]), batch)
        for session in sessions:
            session.run(feeds)  # a model that can't take the data is told before anything is timed
        out.note(f"measuring {len(runs)} x {seconds:g} s")
        named = {str(index): session for index, session in enumerate(sessions)}
        results = bench(named, feeds, seconds=seconds)
        placed = {n: OnDevice(each, feeds) for n, each in named.items() if each.device != "cpu"}
        times = {r.name: r.p50_ms for r in bench(placed, feeds, seconds=seconds)} if placed else {}
        results = [replace(each, on_device_ms=times.get(each.name)) for each in results]
        return runs, results, feeds


def _with_memory(
    out: Output, runs: "list[Runnable]", results: "list[BenchResult]", feeds: dict[str, Any]
) -> "list[BenchResult]":
    from qgraph.errors import EngineError
    from qgraph.runtime import backend
    from qgraph.runtime.backend import EngineOptions
    from qgraph.runtime.memory import peak_memory

    measured = []
    for run, result in zip(runs, results, strict=True):
        try:
            options = EngineOptions(**run.options)
            peak = peak_memory(run.model, backend(run.engine), feeds, options)
        except EngineError as error:
            out.warn(f"{run.path}: peak memory is unknown: {error}")
            measured.append(result)
            continue
        measured.append(
            replace(
                result,
                peak_memory_bytes=peak.peak_bytes,
                device_memory_bytes=peak.device_bytes,
            )
        )
    return measured


def _row(
    run: "Runnable", result: "BenchResult", memory: bool, on_device: bool, on_gpu: bool
) -> list[str]:
    from qgraph import report, text

    placed, sizes = result.on_device_ms, (result.peak_memory_bytes, result.device_memory_bytes)
    shown = ["" if size is None else text.size(size) for size in sizes]
    cells = [run.path, result.engine]
    cells += [report.milliseconds(ms) for ms in (result.p50_ms, result.p90_ms, result.p99_ms)]
    cells += [f"{result.items_per_s:,.1f}", f"{result.runs:,}"]
    cells += ["" if placed is None else report.milliseconds(placed)] * on_device
    cells += [shown[0]] * memory + [shown[1]] * on_gpu
    return [*cells, f"{result.relative_time:.3f}"]


def _verdict(runs: "list[Runnable]", results: "list[BenchResult]") -> str:
    order = sorted(zip(results, runs, strict=True), key=lambda pair: pair[0].relative_time)
    (best, winner), (worst, loser) = order[0], order[-1]
    factor = worst.relative_time / best.relative_time
    name, other = (f"{r.path} in {b.engine}" for b, r in ((best, winner), (worst, loser)))
    return f"\n{name} is {factor:.2f} times as fast as {other}"
