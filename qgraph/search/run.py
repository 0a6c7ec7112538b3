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
from qgraph.errors import AccuracyError, EngineError, ModelError, UsageError
from qgraph.graph import Graph
from qgraph.job import Job, output_folder, resolve
from qgraph.listener import Listener
from qgraph.metrics import metric as find_metric
from qgraph.metrics.metric import Metric
from qgraph.preparation import job_executor, original_file
from qgraph.recipe import Recipe
from qgraph.recognise import quantized_ops
from qgraph.runtime import backend
from qgraph.runtime.backend import Session
from qgraph.search import integers
from qgraph.search.costs_file import read_costs
from qgraph.search.goal import Goal, make_goal
from qgraph.search.judge import Judge
from qgraph.search.outcome import Outcome
from qgraph.search.pareto import Asked
from qgraph.search.parts import open_parts
from qgraph.search.times import Times, choose_times
from qgraph.search.weights import run as weights
from qgraph.search.workspace import Workspace
from qgraph.target import WEIGHT_ONLY
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
    precision: str = "int8",
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
        precision: `int8` searches which layers run in integers; `int4`, `int3`, `int2` and
            `int8-weights` how many bits each layer's weight has, that many at least, activations in
            float.
        recipe: Name, file or object.
        samples: How many samples to use at most.
        exclude: Globs of node names or operators that stay in float.
        assign: `PATTERN=PRECISION`, what the search may not decide: `int8`, `fp32`, `fp16`, `int4`,
            `int4:32` and so on.
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
    job = resolve(target, precision, recipe, exclude, settings, listener, searching=True)
    given = read_costs(costs) if costs is not None else None
    asked = {name: job.recipe.engine_options(name) for name in job.target.engines}
    times = choose_times(job.target, goal, device, given, job.warn, asked)
    _check(job, times, costs)
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
            graph, space = _open(original, job, goal, chosen.bind([original]), data, samples,
                                 answering, Path(scratch), executor, times)  # fmt: skip
            search = weights.search if job.requested in WEIGHT_ONLY else integers.search
            front = Asked(original, folder, points, pick)
            outcome = search(graph, space, answering, assign=assign, asked=front)
        return _write(model, folder, space, outcome)


def _check(job: Job, times: Times, costs: Any) -> None:
    """Refuse what one kind of search lacks."""
    if job.requested not in (*WEIGHT_ONLY, "int8"):
        raise UsageError(
            f"nothing is searched in {job.requested}",
            fix=f"use --precision int8, {', '.join(WEIGHT_ONLY)}",
        )
    if job.requested in WEIGHT_ONLY:
        weights.check(job)
        if costs is not None:
            raise UsageError("--costs has times of units in int8", fix="leave it out")
        if times.estimated:
            raise EngineError(
                f"the bits of weights are timed in an engine of {job.target.name}, and none runs here",
                fix=f"compile with --precision {job.requested} alone, or search where it runs",
            )


# -- steps -----------------------------------------------------------------------------------------


def _open(
    original: Path,
    job: Job,
    goal: Goal,
    metric: Metric,
    data: Any,
    samples: int | None,
    answering: Session,
    folder: Path,
    executor: Executor,
    times: Times,
) -> tuple[Graph, Workspace]:
    """Load, split the data, run the original on it."""
    job.listener.stage("loading")
    graph = onnx_io.load(original)
    if quantized_ops(graph):
        raise ModelError("is already quantized", where=str(original), fix="give the float model")
    images = job.recipe.images
    parts = open_parts(data, graph, metric, images, samples, job.recipe.samples)
    job.listener.stage("running the original")
    # How near the original's answers are to being others is known of the samples that calibrate, too.
    others = [Judge(metric, parts.first, answering).theirs] if metric.margins else []
    judge = Judge(metric, parts.search, answering, others)
    space = Workspace(
        job=job,
        goal=goal,
        metric=metric,
        parts=parts,
        folder=folder,
        judge=judge,
        store=open_cache(),
        times=times,
        executor=None if isinstance(executor, InProcess) else executor,
    )
    return graph, space


def _write(model: Any, folder: Path, space: Workspace, outcome: Outcome) -> Artifact:
    whole, promise = outcome.proof.whole, outcome.proof.promise
    finished = Finished(
        promise=promise,
        graph=outcome.graph,
        stages=outcome.stages,
        selection=outcome.proof.round.selection(whole.name),
        simulated=whole.judged,
        files=outcome.files,
        data=space.parts.data.describe(),
        warnings=space.job.warnings,
    )
    recipe = outcome.recipe
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
