"""The story of a compile that keeps a promise: search, verify, prove, write."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qgraph import onnx_io
from qgraph.artifact import Artifact, check_output
from qgraph.cache import open_cache
from qgraph.compiler import Finished
from qgraph.compiler import compile as compile_model
from qgraph.data import DataSet, Feeds, open_data
from qgraph.errors import AccuracyError, ModelError
from qgraph.graph import Graph
from qgraph.job import Job, output_folder, resolve
from qgraph.kv_cache import cache_axes
from qgraph.listener import Listener
from qgraph.metrics import metric as find_metric
from qgraph.metrics.metric import Metric
from qgraph.pipeline import Stage
from qgraph.preparation import job_context, job_executor, original_file
from qgraph.recipe import Recipe
from qgraph.recognise import quantized_ops
from qgraph.runtime import backend
from qgraph.search import offers, pareto
from qgraph.search.costs_file import costs_json, read_costs
from qgraph.search.estimates import Estimated, Known
from qgraph.search.found import Found
from qgraph.search.goal import Goal, make_goal
from qgraph.search.judge import Judge
from qgraph.search.observed import Seen, observe, sweep_bytes
from qgraph.search.parts import open_parts
from qgraph.search.prepared import prepare
from qgraph.search.problem import CODES, FLOAT, Forced, assigned, build_problem, read_forced
from qgraph.search.proof import Proof, prove
from qgraph.search.record import search_json
from qgraph.search.refine import refine
from qgraph.search.segments import write_segments
from qgraph.search.sensitivity import Sensitivity, measure
from qgraph.search.tasks import run_tasks, sweeping
from qgraph.search.times import Times, choose_times
from qgraph.search.whole import Whole
from qgraph.search.workspace import Workspace
from qgraph.tasks import Executor, InProcess

# Engine in which the original answers and boundaries are computed.
REFERENCE = "onnxruntime-cpu"


def compile_within(
    model: Any,
    *,
    data: Any,
    metric: str | Metric = "agreement",
    max_drop: str | float | None = None,
    optimize: str = "latency",
    max_size: str | None = None,
    max_latency: str | None = None,
    output: str | os.PathLike[str] | None = None,
    target: str = "cpu",
    recipe: str | os.PathLike[str] | Recipe | None = None,
    samples: int | None = None,
    exclude: Sequence[str] = (),
    assign: Sequence[str] = (),
    settings: Sequence[str] = (),
    points: int = 0,
    pick: int | None = None,
    costs: str | os.PathLike[str] | None = None,
    device: str | None = None,
    workers: int | None = None,
    ray: str | None = None,
    listener: Listener | None = None,
) -> Artifact:
    """Compile to the fastest (or smallest) mix of precisions that keeps a promise.

    Args:
        model: A path, or anything that `qgraph.load` takes.
        data: Labelled samples; see `qgraph.data.open_data`. A third calibrates, a third is
            searched with, a third proves the promise.
        metric: A name, `module:function` or a metric; `agreement` needs no labels.
        max_drop: By how much the score may get worse: `0.5%`, or a number in the metric's unit.
        optimize: `latency`, `size` or `memory`.
        max_size: The most bytes of the model, such as `10MB`.
        max_latency: The longest median latency, such as `4ms`.
        output: The artifact's folder.
        target: Name of a target.
        recipe: Name, file or object.
        samples: How many samples to use at most.
        exclude: Globs of node names or operators that stay in float.
        assign: `PATTERN=int8` or `PATTERN=fp32`, what the search may not decide.
        settings: `pass.option=value` lines.
        points: How many points of the front between loss and aim to verify; 0 for none.
        pick: Build this one of them, counted from 1, in place of the best; of those that an artifact
            in `output` has of the same model, without searching again.
        costs: A file of measured times of units, `costs.json` of a search on another machine.
        device: Name or file of the device that times are estimated for where no engine of the target
            runs here; default: the target's.
        workers: Worker processes for calibration, sensitivity and builds; default: this process alone.
        ray: Address of a Ray cluster that does them instead; see docs/distributed.md.
        listener: Told how it goes.

    Returns:
        The artifact; its manifest has the promise.

    Raises:
        UsageError, ModelError, DataError, EngineError: What the names say.
        AccuracyError: The promise can't be kept; the best that was found is kept as an artifact.
    """
    goal = make_goal(max_drop, optimize, max_size, max_latency)
    job = resolve(target, "int8", recipe, exclude, settings, listener, searching=True)
    given = read_costs(costs) if costs is not None else None
    times = choose_times(job.target, goal, device, given, job.warn)
    folder = Path(output) if output is not None else output_folder(model, None, job)
    check_output(folder)
    chosen = find_metric(metric) if isinstance(metric, str) else metric
    executor = job_executor(job, workers, ray)
    with (
        original_file(model) as original,
        tempfile.TemporaryDirectory(prefix="qgraph-") as scratch,
        executor,
    ):
        with backend(REFERENCE).open(original) as answering:
            space = _open(original, job, goal, chosen.bind([original]), data, samples, answering,
                          Path(scratch), executor, times)  # fmt: skip
            front = pareto.kept(folder, original) if pick is not None and not points else []
            found = Found(space) if front else _search(space, assign)
            front = front or pareto.measure_front(space, found, max(points, pick or 0))
            proof = _prove(space, found, front, pick, answering)
        return _write(model, folder, space, found, front, proof, samples)


# -- steps -----------------------------------------------------------------------------------------


def _open(
    original: Path,
    job: Job,
    goal: Goal,
    metric: Metric,
    data: Any,
    samples: int | None,
    answering: Any,
    folder: Path,
    executor: Executor,
    times: Times,
) -> Workspace:
    """Load, split the data, run the original on it, calibrate."""
    job.listener.stage("loading")
    graph = onnx_io.load(original)
    if quantized_ops(graph):
        raise ModelError("is already quantized", where=str(original), fix="give the float model")
    images = job.recipe.images
    parts = open_parts(data, graph, metric, images, samples, job.recipe.samples)
    job.listener.stage("running the original")
    judge = Judge(metric, parts.search, answering)
    prepared = prepare(
        graph, job, job_context(job, _calibration(graph, job, parts.calibration), None, executor)
    )
    tasks = None if isinstance(executor, InProcess) else executor
    space = Workspace(job, goal, metric, parts, prepared, folder, judge, open_cache(), times, tasks)
    if isinstance(times, Estimated):
        times.known = Known(space.prepared.graph, space.units, {})
    return space


def _calibration(graph: Graph, job: Job, feeds: Sequence[Feeds]) -> DataSet:
    """Return what an ordinary compile calibrates with, of the same samples."""
    data = open_data(feeds, graph.signature(), caches=cache_axes(graph))
    return data.split(job.recipe.verify.held_out)[0]


def _bind(space: Workspace, forced: Forced) -> None:
    """Hold whole models to what the user said of single nodes."""
    wanted = {unit.name: assigned(unit, forced) for unit in space.units}
    space.candidates.floats = [name for name, each in wanted.items() if each == FLOAT]
    space.candidates.only_float = CODES in wanted.values()


def _search(space: Workspace, assign: Sequence[str]) -> Found:
    found = Found(space)
    forced = read_forced(assign, space.units)
    _bind(space, forced)
    with space.timing("building whole models"):
        models = [space.floating, *space.candidates.all()]
        if space.units:
            integer_graph, _ = space.prepared.mixed(())
            onnx_io.save(integer_graph, space.folder / "int8.onnx")
            models.append(Whole("int8", "int8", space.folder / "int8.onnx", floats=()))
    with space.timing("timing whole models"):
        found.first = first = space.times.whole(models, space.sample)
    if not space.units:
        return found
    with space.timing("measuring sensitivity"):
        seen, found.sensitivity = _sensitivity(space)
    ours = first.of("int8")
    floating = first.of("fp32")
    if ours is None or floating is None:
        return found
    with space.timing("timing units"):
        found.costs = space.times.units(
            space.prepared.graph,
            integer_graph,
            space.units,
            seen,
            ours.engine,
            store=space.store,
            progress=_progress(space, "timing units"),
        )
    found.costs_engine = ours.engine
    found.problem = build_problem(
        space.units,
        space.links,
        found.sensitivity,
        found.costs,
        seen,
        float_ms=floating.p50_ms,
        integer_ms=ours.p50_ms,
        float_bytes=floating.bytes,
        forced=forced,
    )
    space.option_names = [[option.name for option in unit] for unit in found.problem.units]
    with space.timing("choosing and verifying"):
        found.refined = refine(
            found.problem, space.goal, lambda choice: space.verdict(space.mix(choice), ours.engine)
        )
    return found


def _sensitivity(space: Workspace) -> tuple[dict[str, Seen], Sensitivity]:
    folder = space.folder / "segments"
    folder.mkdir()
    segments = write_segments(space.prepared, space.units, folder)
    graph = space.prepared.graph
    names = [value.name or "" for node in graph.nodes() for value in node.outputs]
    seen = observe(space.folder / "fp32.onnx", names, space.sample)
    sided = space.metric.sides != ("",)
    found = measure(
        folder,
        space.parts.sensitivity,
        metric=None if sided else space.metric,
        together=space.parts.data.layout.free,
        sample_bytes=sweep_bytes(segments, seen),
        store=space.store,
        run=run_tasks if space.executor is None else sweeping(space.executor, folder),
        progress=_progress(space, "measuring sensitivity"),
    )
    return seen, found


def _progress(space: Workspace, what: str) -> Any:
    return lambda done, total: space.job.listener.progress(what, done, total)


def _prove(
    space: Workspace, found: Found, front: "list[pareto.Row]", pick: int | None, answering: Any
) -> Proof:
    """Time what keeps the promise, and prove the best on samples that nothing was chosen by."""
    if pick is not None:
        row = pareto.pick(front, pick)
        mixes = [space.build(tuple(row["floats"]), float(row["predicted_loss"]))]
    else:
        mixes = offers.mixes(space, found)
    with space.timing("building whole models"):
        offers.finish(space, found)
    with space.timing("timing what keeps the promise"):
        others = space.candidates.finished()
        models = list({each.name: each for each in [*mixes, space.floating, *others]}.values())
        last = space.times.whole(models, space.sample)
        if space.goal.optimize == "memory":
            last = space.times.memory(last, space.sample)
    with space.timing("proving"):
        judge = Judge(space.metric, space.parts.proof, answering)
        return prove(
            space, last, judge, only=mixes[0].name if pick is not None else None, first=found.first
        )


def _write(
    model: Any,
    folder: Path,
    space: Workspace,
    found: Found,
    front: "list[pareto.Row]",
    proof: Proof,
    samples: int | None,
) -> Artifact:
    whole, promise = proof.whole, proof.promise
    files = {"search.json": search_json(space, found, front, proof)}
    if front:
        files["pareto.csv"] = pareto.table_csv(front)
    if found.costs is not None and found.costs_engine is not None and not space.times.estimated:
        text = costs_json(found.costs, found.costs_engine)
        files |= {"costs.json": text} if text else {}
    graph, stages = _graph(space, whole)
    finished = Finished(
        promise=promise,
        graph=graph,
        stages=stages,
        selection=proof.round.selection(whole.name),
        simulated=whole.judged,
        files=files,
        data=space.parts.data.describe(),
    )
    recipe = space.job.recipe
    verify = recipe.verify.model_copy(update={"min_sqnr_db": None, "min_cosine": None})
    artifact = compile_model(
        model,
        output=folder,
        target=space.job.target.name,
        precision=whole.precision,
        recipe=recipe.model_copy(update={"verify": verify, "exclude": space.job.exclude}),
        data=space.parts.calibration,
        listener=space.job.listener,
        force=whole.precision in space.job.target.instead,
        finished=finished,
    )
    if not promise.holds:
        raise AccuracyError(
            "; ".join(promise.broken),
            where=str(folder),
            fix="the best that was found is kept there, marked; allow more loss, time or bytes",
        )
    return artifact


def _graph(space: Workspace, whole: Whole) -> tuple[Graph | None, list[Stage]]:
    """Return the graph that was proved; None for the float model, which the passes write again."""
    if whole.floats is not None:
        return space.prepared.mixed(whole.floats)
    return space.candidates.built.get(whole.precision, (None, []))
