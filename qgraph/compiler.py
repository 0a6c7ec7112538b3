"""The story of a compile, from a model file to an artifact."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qgraph import __version__, flow, onnx_io, record
from qgraph.artifact import MODEL, Artifact, check_output, draft
from qgraph.context import Context
from qgraph.data import DataSet, Feeds
from qgraph.decoder import context_length
from qgraph.engine_build import EngineBuild, build_engine, note_dropped
from qgraph.engine_choice import Selection, select_engine
from qgraph.errors import AccuracyError
from qgraph.explain import node_precisions
from qgraph.file_hashes import file_records
from qgraph.float_session import FloatSession
from qgraph.graph import Graph
from qgraph.interface import Interface
from qgraph.job import Job, output_folder, resolve
from qgraph.kv_cache import Cache, find_caches
from qgraph.listener import Listener
from qgraph.manifest import Accuracy, Manifest, Promise
from qgraph.own_models import OwnModel, adopt, own_models
from qgraph.pipeline import Hook, Pass, Pipeline, Stage
from qgraph.preparation import (
    check_io_options,
    given_encodings,
    job_context,
    job_executor,
    original_file,
    split_data,
)
from qgraph.recipe import Recipe
from qgraph.runtime.backend import TensorInfo
from qgraph.target_fit import check_shapes, too_large
from qgraph.text import few
from qgraph.timing_sample import of_batch, timing_sample
from qgraph.tokenizer import copy_tokenizer
from qgraph.verify import verify

Kind = Literal["held out", "calibration", "random"]

# Samples for the comparison with the original: at most so many held-out ones, or, where there are
# none, so many of other kinds.
VERIFY_SAMPLES = 64
RANDOM_SAMPLES = 4
# Two runs of one artifact differ by about this much.
SLOWER_BY = 1.02


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a search has done already for one compile.

    Attributes:
        promise: For the manifest.
        graph: The rewritten graph, where the passes need not run.
        stages: What they did.
        selection: The engine, where nothing need be timed.
        simulated: The same model in operators of the ONNX standard, where it has others.
        files: Further files of the artifact, by name.
        data: What the manifest says of the data: more of it than one compile sees.
        warnings: What it warned of.
    """

    promise: Promise
    graph: Graph | None = None
    stages: list[Stage] = field(default_factory=list)
    selection: Selection | None = None
    simulated: Path | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    data: dict[str, Any] | None = None
    warnings: Sequence[str] = ()


def compile(
    model: Any,
    *,
    output: str | os.PathLike[str] | None = None,
    target: str = "cpu",
    precision: str | None = None,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    data: Any = None,
    samples: int | None = None,
    exclude: Sequence[str] = (),
    settings: Sequence[str] = (),
    encodings: Any = None,
    io: str | None = None,
    io_outputs: str | None = None,
    passes: Sequence[Pass] = (),
    hooks: Sequence[Hook] = (),
    workers: int | None = None,
    ray: str | None = None,
    listener: Listener | None = None,
    force: bool = False,
    finished: Finished | None = None,
) -> Artifact:
    """Compile a trained model to a fast, verified artifact.

    Args:
        model: A path, or anything that `qgraph.load` takes.
        output: The artifact's folder; an older artifact there is replaced once the new one is
            complete. Default: `<model>.<precision>` in the current folder.
        target: Name of a target; see `qgraph.target.targets`.
        precision: One of the target's precisions; default: the recipe's.
        recipe: Name, file or object; default: `default`.
        data: Calibration data; see `qgraph.data.open_data`.
        samples: How many samples to use at most.
        exclude: Globs of node names or operators that stay in float.
        settings: `pass.option=value` lines that override the recipe.
        encodings: A file of encodings, or its content as a dict, that replaces calibration for the
            values that it names; see `qgraph.encodings_json.read_encodings`. int8 only.
        io: Type of the inputs: `uint8` or `int8`, raw images where the recipe has [images] and
            codes elsewhere; `float` leaves them alone. Sets `quantize_io.inputs`.
        io_outputs: Type of the outputs: `uint8`, `int8`, `uint16`, `int16` or `float`; default: 16
            bits where `io` is not `float`. Sets `quantize_io.outputs`.
        passes: The caller's own passes or fusions; they run between clean-up and fusions.
        hooks: Called after every pass with the graph and what was done.
        workers: Worker processes for the calibration; default: this process alone.
        ray: Address of a Ray cluster that does it instead, as `ray.init` takes it, or `local`; see
            docs/distributed.md.
        listener: Told how it goes.
        force: Build the precision asked for even where the target runs another one faster.
        finished: What a search for this model has done already; see `qgraph.search`.

    Returns:
        The artifact.

    Raises:
        UsageError: A name, option or combination is wrong.
        ModelError, DataError, EngineError, ArtifactError: What the names say.
        AccuracyError: The artifact misses the recipe's floor; it is kept, marked as failed.
    """
    job = resolve(
        target, precision, recipe, exclude, settings, listener, io, io_outputs, force=force
    )
    given = given_encodings(encodings, job)
    folder = output_folder(model, output, job)
    check_output(folder)
    executor = job_executor(job, workers, ray)
    with original_file(model) as original, executor:
        job.listener.stage("loading")
        graph = onnx_io.load(original)
        for note in (*graph.notes, *(finished.warnings if finished is not None else ())):
            job.warn(note)
        check_shapes(graph, job.target)
        dataset, calibration, held_out = split_data(graph, data, samples, job, given)
        context = job_context(job, calibration, given, executor)
        inputs = graph.signature()
        caches, positions = find_caches(graph), context_length(graph)
        check_io_options(graph, job, dataset, given)
        with draft(folder) as scratch:
            if finished is not None and finished.graph is not None:
                graph, stages, floating = finished.graph, finished.stages, None
                simulated = finished.simulated
            else:
                stages, floating, simulated = rewrite(graph, job, context, passes, hooks, scratch)
            job.listener.stage("writing")
            written = onnx_io.save(graph, scratch / MODEL)
            own = _own(job, scratch, context, hooks)
            record.write_facts(graph, scratch)
            copy_tokenizer(original, inputs, scratch)
            nodes = node_precisions(graph, job.precision)
            interface = graph.facts.io or Interface()
            kind, feeds = _feeds(inputs, held_out, calibration)
            if kind == "random":
                feeds = [interface.snapped(sample) for sample in feeds]
            del graph
            job.listener.stage("running the original")
            guessed = kind == "random" and held_out is None
            timed = timing_sample(original, feeds[0], caches, positions, guessed=guessed)
            timed = of_batch(timed, inputs, job.batch)
            size = sum(path.stat().st_size for path in written)
            if line := too_large(job.target, size):
                job.warn(line)
            shapes = {key: array.shape for key, array in interface.raw(timed.feeds).items()}
            built = build_engine(job, scratch / MODEL, shapes)
            nodes = note_dropped(built, scratch, nodes)
            if finished is not None and finished.selection is not None:
                selection = finished.selection
            else:
                selection = _select(
                    job, scratch / MODEL, floating, own, interface, timed.feeds, built
                )
            stages += adopt(scratch / MODEL, own, selection.model)
            # The reference has no kernel of the target's own.
            judged = scratch / MODEL if selection.backend or not simulated else simulated
            accuracy = _verify(job, original, judged, selection, interface, kind, feeds, caches)
            _remove(floating, scratch)
            _remove(simulated, scratch)
            for name, text in (finished.files if finished is not None else {}).items():
                (scratch / name).write_text(text, encoding="utf-8")
            manifest = Manifest(
                qgraph_version=__version__,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                packages=record.packages(),
                source=record.source(original, model),
                target=job.target.name,
                requested_precision=job.requested,
                precision=job.precision,
                # With what was excluded on the command line.
                recipe=job.recipe.model_copy(update={"exclude": job.exclude}).model_dump(
                    mode="json"
                ),
                data=_described(dataset, finished),
                random_calibration=bool(dataset and dataset.random),
                stages=[record.stage_record(stage) for stage in stages],
                warnings=job.warnings,
                engine=selection.engine,
                timed="" if selection.not_timed else timed.what,
                timings=selection.timings,
                not_timed=selection.not_timed,
                plan=built.built.record if built is not None else None,
                accuracy=accuracy,
                promise=finished.promise if finished is not None else None,
                io=interface.to_json() if interface else None,
                nodes=nodes,
                original_bytes=record.model_bytes(original),
                artifact_bytes=size,
                files={
                    name: entry
                    for name, entry in file_records(scratch).items()
                    # What an engine keeps beside the model changes as it runs.
                    if not name.partition("/")[0].endswith(".engines")
                },
            )
            record.write_manifest(manifest, scratch)
    artifact = Artifact.load(folder)
    if accuracy is not None and not accuracy.passed:
        raise AccuracyError(
            few(accuracy.failures),
            where=str(folder),
            fix="the artifact is kept and marked as failed; exclude nodes, add calibration data, "
            "or lower verify.min_sqnr_db in the recipe",
        )
    return artifact


def _described(dataset: DataSet | None, finished: Finished | None) -> dict[str, Any] | None:
    if finished is not None and finished.data is not None:
        return finished.data
    return dataset.describe() if dataset else None


# -- the passes ------------------------------------------------------------------------------------


def rewrite(
    graph: Graph,
    job: Job,
    context: Context,
    own: Sequence[Pass],
    hooks: Sequence[Hook],
    scratch: Path,
) -> tuple[list[Stage], Path | None, Path | None]:
    """Run the passes.

    A model that is quantized already is left intact.

    Returns:
        What they did; the float model where it differs from the result; and the result in operators
        of the ONNX standard where it has kernels of the target's own.
    """
    if job.precision == "as is":
        return [], None, None
    options = job.recipe.passes
    stages = Pipeline(flow.exact_passes(options, own, job.target), hooks=hooks).run(graph, context)
    passes = flow.quantizing_passes(job.precision, options, job.target)
    floating = None
    if passes:
        floating = scratch / "float.onnx"
        onnx_io.save(graph, floating)
        given = graph.facts.present()
        stages += Pipeline(passes, hooks=hooks, given=given).run(graph, context)
        plan = graph.facts.plan
        if (
            job.precision not in ("fp16", "bf16")
            and plan is not None
            and all(entry[0] in ("float", "fp16", "bf16") for entry in plan.nodes.values())
        ):
            job.warn(f"{job.precision} found nothing to quantize; `qgraph explain` says why")
    kernels = flow.kernel_passes(job.precision, options, job.target)
    simulated = None
    if kernels:
        simulated = scratch / "simulated.onnx"
        onnx_io.save(graph, simulated)
        stages += Pipeline(kernels, hooks=hooks, given=graph.facts.present()).run(graph, context)
    for stage in stages:
        for line in stage.report.warnings:
            job.warn(f"{stage.name}: {line}")
    return stages, floating, simulated


def _own(job: Job, scratch: Path, context: Context, hooks: Sequence[Hook]) -> dict[str, OwnModel]:
    """Write the compiled model once more for each engine that has operators of its own."""
    if job.precision == "as is":
        return {}
    passes = flow.own_passes(job.precision, job.recipe.passes, job.target)
    return own_models(scratch / MODEL, passes, context, hooks)


def _remove(model: Path | None, scratch: Path) -> None:
    if model is not None:
        for path in scratch.glob(f"{model.name}*"):
            if path.is_dir():  # engines that were kept beside it
                shutil.rmtree(path)
            else:
                path.unlink()


# -- what comes after ------------------------------------------------------------------------------


def _feeds(
    inputs: Sequence[TensorInfo], held_out: DataSet | None, calibration: DataSet | None
) -> tuple[Kind, list[Feeds]]:
    """Samples for timing and verifying: held-out ones, else calibration ones, else random."""
    from qgraph.runtime.feeds import random_feeds

    if held_out is not None:
        kind: Kind = "random" if held_out.random else "held out"
        return kind, [dict(sample) for sample in islice(held_out, VERIFY_SAMPLES)]
    if calibration is not None and calibration.rereadable:
        return "calibration", [dict(sample) for sample in islice(calibration, RANDOM_SAMPLES)]
    rng = np.random.default_rng(0)
    return "random", [random_feeds(inputs, rng) for _ in range(RANDOM_SAMPLES)]


def _select(
    job: Job,
    model: Path,
    floating: Path | None,
    own: Mapping[str, OwnModel],
    interface: Interface,
    feeds: Feeds,
    built: EngineBuild | None,
) -> Selection:
    job.listener.stage("measuring engines")
    selection = select_engine(
        job.target,
        job.precision,
        model,
        floating,
        interface.raw(feeds),
        float_feeds=feeds,
        own={engine: each.path for engine, each in own.items()},
        built=built,
        asked={name: job.recipe.engine_options(name) for name in job.target.engines},
    )
    for line in selection.warnings:
        job.warn(line)
    ratio = selection.slower_than_float
    if ratio is not None and ratio > SLOWER_BY:
        job.warn(
            f"{job.precision} takes {ratio:.2f} times as long as fp32 on this machine: "
            "compile with --precision fp32 for speed"
        )
    return selection


def _verify(
    job: Job,
    original: Path,
    model: Path,
    selection: Selection,
    interface: Interface,
    kind: Kind,
    feeds: Sequence[Feeds],
    caches: Sequence[Cache],
) -> Accuracy:
    job.listener.stage("verifying")
    floor = job.recipe.verify
    judged = kind != "random" and job.precision != "as is"
    with selection.open(model) as session:
        return verify(
            original,
            FloatSession(session, interface),
            feeds,
            kind=kind,
            state={cache.output for cache in caches},
            min_sqnr_db=floor.sqnr_floor(job.precision) if judged else None,
            min_cosine=floor.min_cosine if judged else None,
            progress=job.listener.progress,
        )
