"""The story of a compile, from a model file to an artifact."""

import os
from collections.abc import Sequence
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
from qgraph.engine_choice import Selection, select_engine
from qgraph.errors import AccuracyError
from qgraph.explain import node_precisions
from qgraph.float_session import FloatSession
from qgraph.graph import Graph
from qgraph.interface import Interface
from qgraph.job import Job, output_folder, resolve
from qgraph.kv_cache import Cache, find_caches
from qgraph.listener import Listener
from qgraph.manifest import Accuracy, Manifest
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
from qgraph.timing_sample import timing_sample
from qgraph.tokenizer import copy_tokenizer
from qgraph.verify import verify

Kind = Literal["held out", "calibration", "random"]

# Samples for the comparison with the original: at most so many held-out ones, or, where there are
# none, so many of other kinds.
VERIFY_SAMPLES = 64
RANDOM_SAMPLES = 4
# Two runs of one artifact differ by about this much.
SLOWER_BY = 1.02


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

    Returns:
        The artifact.

    Raises:
        UsageError: A name, option or combination is wrong.
        ModelError, DataError, EngineError, ArtifactError: What the names say.
        AccuracyError: The artifact misses the recipe's floor; it is kept, marked as failed.
    """
    job = resolve(target, precision, recipe, exclude, settings, listener, io, io_outputs)
    given = given_encodings(encodings, job)
    folder = output_folder(model, output, job)
    check_output(folder)
    executor = job_executor(job, workers, ray)
    with original_file(model) as original, executor:
        job.listener.stage("loading")
        graph = onnx_io.load(original)
        for note in graph.notes:
            job.warn(note)
        check_shapes(graph, job.target)
        dataset, calibration, held_out = split_data(graph, data, samples, job, given)
        context = job_context(job, calibration, given, executor)
        inputs = graph.signature()
        caches, positions = find_caches(graph), context_length(graph)
        check_io_options(graph, job, dataset, given)
        with draft(folder) as scratch:
            stages, floating = _rewrite(graph, job, context, passes, hooks, scratch)
            job.listener.stage("writing")
            written = onnx_io.save(graph, scratch / MODEL)
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
            size = sum(path.stat().st_size for path in written)
            if line := too_large(job.target, size):
                job.warn(line)
            selection = _select(job, scratch / MODEL, floating, interface, timed.feeds)
            accuracy = _verify(
                job, original, scratch / MODEL, selection, interface, kind, feeds, caches
            )
            _remove_float(floating, scratch)
            manifest = Manifest(
                qgraph_version=__version__,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                packages=record.packages(),
                source=record.source(original, model),
                target=job.target.name,
                requested_precision=job.requested,
                precision=job.precision,
                recipe=job.recipe.model_dump(mode="json"),
                data=dataset.describe() if dataset else None,
                random_calibration=bool(dataset and dataset.random),
                stages=[record.stage_record(stage) for stage in stages],
                warnings=job.warnings,
                engine=selection.engine,
                timed="" if selection.not_timed else timed.what,
                timings=selection.timings,
                not_timed=selection.not_timed,
                accuracy=accuracy,
                io=interface.to_json() if interface else None,
                nodes=nodes,
                original_bytes=record.model_bytes(original),
                artifact_bytes=size,
                files=sorted(path.name for path in scratch.iterdir()),
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


# -- the passes ------------------------------------------------------------------------------------


def _rewrite(
    graph: Graph,
    job: Job,
    context: Context,
    own: Sequence[Pass],
    hooks: Sequence[Hook],
    scratch: Path,
) -> tuple[list[Stage], Path | None]:
    """Run the passes; return what they did, and the float model where it differs from the result.

    A model that is quantized already is left intact.
    """
    if job.precision == "as is":
        return [], None
    options = job.recipe.passes
    stages = Pipeline(flow.exact_passes(options, own), hooks=hooks).run(graph, context)
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
    for stage in stages:
        for line in stage.report.warnings:
            job.warn(f"{stage.name}: {line}")
    return stages, floating


def _remove_float(floating: Path | None, scratch: Path) -> None:
    if floating is not None:
        for file in scratch.glob(f"{floating.name}*"):
            file.unlink()


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
    interface: Interface,
    feeds: Feeds,
) -> Selection:
    job.listener.stage("measuring engines")
    raw = interface.raw(feeds)
    selection = select_engine(job.target, job.precision, model, floating, raw, float_feeds=feeds)
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
