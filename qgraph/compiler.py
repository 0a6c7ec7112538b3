"""The story of a compile, from a model file to an artifact."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qgraph import __version__, flow, onnx_io, record
from qgraph.artifact import MODEL, Artifact, check_output, draft
from qgraph.context import Context
from qgraph.data import DataSet, open_data
from qgraph.engine_choice import Selection, select_engine
from qgraph.errors import AccuracyError
from qgraph.explain import node_precisions
from qgraph.graph import Graph
from qgraph.job import Job, output_folder, resolve
from qgraph.listener import Listener
from qgraph.manifest import Accuracy, Engine, Manifest
from qgraph.pipeline import Hook, Pass, Pipeline, Stage
from qgraph.recipe import Recipe
from qgraph.recognise import quantized_ops
from qgraph.verify import Outputs, reference_outputs, verify

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
    passes: Sequence[Pass] = (),
    hooks: Sequence[Hook] = (),
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
        passes: The caller's own passes or fusions; they run between clean-up and fusions.
        hooks: Called after every pass with the graph and what was done.
        listener: Told how it goes.

    Returns:
        The artifact.

    Raises:
        UsageError: A name, option or combination is wrong.
        ModelError, DataError, EngineError, ArtifactError: What the names say.
        AccuracyError: The artifact misses the recipe's floor; it is kept, marked as failed.
    """
    job = resolve(target, precision, recipe, exclude, settings, listener)
    folder = output_folder(model, output, job)
    check_output(folder)
    with _original(model) as original:
        job.listener.stage("loading")
        graph = onnx_io.load(original)
        for note in graph.notes:
            job.warn(note)
        dataset, calibration, held_out = _data(graph, data, samples, job)
        with draft(folder) as scratch:
            stages, floating = _rewrite(graph, job, calibration, passes, hooks, scratch)
            job.listener.stage("writing")
            written = onnx_io.save(graph, scratch / MODEL)
            record.write_facts(graph, scratch)
            nodes = node_precisions(graph, job.precision)
            kind, feeds = _feeds(graph, held_out, calibration)
            del graph
            job.listener.stage("running the original")
            expected = reference_outputs(
                original,
                feeds,
                guessed=kind == "random" and held_out is None,
                progress=job.listener.progress,
            )
            selection = _select(job, scratch / MODEL, floating, feeds[0])
            accuracy = _verify(job, scratch / MODEL, selection, kind, feeds, expected)
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
                engine=Engine(backend=selection.backend, options=selection.options),
                timings=selection.timings,
                accuracy=accuracy,
                nodes=nodes,
                original_bytes=record.model_bytes(original),
                artifact_bytes=sum(path.stat().st_size for path in written),
                files=sorted(path.name for path in scratch.iterdir()),
            )
            record.write_manifest(manifest, scratch)
    artifact = Artifact.load(folder)
    if accuracy is not None and not accuracy.passed:
        raise AccuracyError(
            "; ".join(accuracy.failures),
            where=str(folder),
            fix="the artifact is kept and marked as failed; exclude nodes, add calibration data, "
            "or lower verify.min_sqnr_db in the recipe",
        )
    return artifact


# -- before anything runs ------------------------------------------------------------------------


@contextmanager
def _original(model: Any) -> Iterator[Path]:
    """Give the model as a file: what the artifact is compared with."""
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        yield path / MODEL if path.is_dir() else path
        return
    with tempfile.TemporaryDirectory(prefix="qgraph-") as folder:
        path = Path(folder) / MODEL
        onnx_io.save(onnx_io.load(model), path)
        yield path


def _data(
    graph: Graph, data: Any, samples: int | None, job: Job
) -> tuple[DataSet | None, DataSet | None, DataSet | None]:
    """Open the data and keep some of it out of calibration."""
    found = quantized_ops(graph)
    if found and job.precision != "fp32":
        listed = ", ".join(f"{count} {op}" for op, count in sorted(found.items()))
        job.warn(f"the model is already quantized ({listed}): it is left intact")
        job.precision = "as is"
    if data is None:
        if job.precision == "int8":
            job.warn(
                "int8 needs calibration data: built int8-dynamic instead; pass --data for int8"
            )
            job.precision = "int8-dynamic"
        return None, None, None
    dataset = open_data(
        data,
        graph.signature(),
        images=job.recipe.images,
        samples=samples or job.recipe.samples,
    )
    if dataset.random:
        job.warn("calibrated on random data: accuracy on real data is unknown")
    if dataset.count == 1 or (isinstance(data, list | tuple) and len(data) == 1):
        job.warn("one sample can't be split: the artifact is verified on the one it was made with")
        return dataset, dataset, None
    calibration, held_out = dataset.split(job.recipe.verify.held_out)
    return dataset, calibration, held_out


# -- the passes ------------------------------------------------------------------------------------


def _rewrite(
    graph: Graph,
    job: Job,
    calibration: DataSet | None,
    own: Sequence[Pass],
    hooks: Sequence[Hook],
    scratch: Path,
) -> tuple[list[Stage], Path | None]:
    """Run the passes; return what they did, and the float model where it differs from the result.

    A model that is quantized already is left intact.
    """
    if job.precision == "as is":
        return [], None
    context = Context(
        target=job.target,
        recipe=job.recipe,
        data=calibration,
        exclude=job.exclude,
        warn=job.warn,
        progress=job.listener.progress,
        starting=job.listener.stage,
    )
    options = job.recipe.passes
    stages = Pipeline(flow.exact_passes(options, own), hooks=hooks).run(graph, context)
    passes = flow.quantizing_passes(job.precision, options)
    floating = None
    if passes:
        floating = scratch / "float.onnx"
        onnx_io.save(graph, floating)
        given = graph.facts.present()
        stages += Pipeline(passes, hooks=hooks, given=given).run(graph, context)
        plan = graph.facts.plan
        if (
            job.precision.startswith("int8")
            and plan is not None
            and all(entry[0] == "float" for entry in plan.nodes.values())
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
    graph: Graph, held_out: DataSet | None, calibration: DataSet | None
) -> tuple[Kind, list[dict[str, Any]]]:
    """Samples for timing and verifying: held-out ones, else calibration ones, else random."""
    from qgraph.runtime.feeds import random_feeds

    if held_out is not None:
        kind: Kind = "random" if held_out.random else "held out"
        return kind, [dict(sample) for sample in islice(held_out, VERIFY_SAMPLES)]
    if calibration is not None and calibration.rereadable:
        return "calibration", [dict(sample) for sample in islice(calibration, RANDOM_SAMPLES)]
    rng = np.random.default_rng(0)
    inputs = graph.signature()
    return "random", [random_feeds(inputs, rng) for _ in range(RANDOM_SAMPLES)]


def _select(job: Job, model: Path, floating: Path | None, sample: dict[str, Any]) -> Selection:
    job.listener.stage("measuring engines")
    selection = select_engine(job.target, job.precision, model, floating, sample)
    ratio = selection.slower_than_float
    if ratio is not None and ratio > SLOWER_BY:
        job.warn(
            f"{job.precision} takes {ratio:.2f} times as long as fp32 on this machine: "
            "compile with --precision fp32 for speed"
        )
    return selection


def _verify(
    job: Job,
    model: Path,
    selection: Selection,
    kind: Kind,
    feeds: list[dict[str, Any]],
    expected: list[Outputs],
) -> Accuracy:
    job.listener.stage("verifying")
    floor = job.recipe.verify
    judged = kind != "random" and job.precision != "as is"
    with selection.open(model) as session:
        return verify(
            expected,
            session,
            feeds,
            kind=kind,
            min_sqnr_db=floor.min_sqnr_db if judged else None,
            min_cosine=floor.min_cosine if judged else None,
            progress=job.listener.progress,
        )
