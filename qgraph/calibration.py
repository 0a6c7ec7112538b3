"""Calibration on its own: a model and data in, encodings to look at, edit and keep out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qgraph import flow, onnx_io, record
from qgraph.encodings_json import document_of, read_encodings, write_encodings
from qgraph.errors import ModelError, UsageError
from qgraph.facts import Plan
from qgraph.graph import Graph
from qgraph.job import Job, resolve
from qgraph.listener import Listener
from qgraph.passes.calibration_cache import graph_key
from qgraph.pipeline import Pass, Pipeline, Stage
from qgraph.preparation import job_context, job_executor, original_file, split_data
from qgraph.recipe import Recipe

# Options of `calibrate` that decide when and where it runs, not what comes out.
_RUNNING = ("cache", "checkpoint_s")


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        document: The encodings as JSON has them; `compile(..., encodings=document)` takes it.
        stages: What each pass did.
        warnings: What the user should know.
    """

    document: dict[str, Any]
    stages: list[Stage] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the encodings, in place of an older encodings file.

        Raises:
            ArtifactError: The path holds something else, or can't be written.
        """
        write_encodings(self.document, path)


def calibrate(
    model: Any,
    *,
    data: Any = None,
    target: str = "cpu",
    recipe: str | os.PathLike[str] | Recipe | None = None,
    samples: int | None = None,
    exclude: Sequence[str] = (),
    settings: Sequence[str] = (),
    encodings: Any = None,
    passes: Sequence[Pass] = (),
    workers: int | None = None,
    ray: str | None = None,
    listener: Listener | None = None,
) -> Calibration:
    """Find the encodings that `compile` with the same arguments would use.

    The same passes run, on the same part of the data: what `compile` keeps out to verify the
    artifact is kept out here too, so that it still verifies on samples that no encoding has seen.

    Args:
        model: A path, or anything that `qgraph.load` takes.
        data: Calibration data; see `qgraph.data.open_data`. None only where `encodings` has all.
        target: Name of a target.
        recipe: Name, file or object; default: `default`.
        samples: How many samples to use at most.
        exclude: Globs of node names or operators that stay in float.
        settings: `pass.option=value` lines that override the recipe.
        encodings: Encodings to start from, which are kept; only other values are calibrated. This
            is also how encodings of other tools become qgraph's.
        passes: The caller's own passes or fusions.
        workers: Worker processes for the calibration; default: this process alone.
        ray: Address of a Ray cluster that does it instead, as `ray.init` takes it, or `local`; see
            docs/distributed.md.
        listener: Told how it goes.

    Returns:
        The encodings.

    Raises:
        UsageError: A name, option or combination is wrong, or there is no data.
        ModelError, DataError, EngineError: What the names say.
    """
    job = resolve(target, "int8", recipe, exclude, settings, listener, force=True)
    given = None if encodings is None else read_encodings(encodings)
    if data is None and given is None:
        raise UsageError("calibration needs data", fix="pass --data")
    executor = job_executor(job, workers, ray)
    with original_file(model) as original, executor:
        job.listener.stage("loading")
        graph = onnx_io.load(original)
        for note in graph.notes:
            job.warn(note)
        dataset, calibration, _ = split_data(graph, data, samples, job, given)
        if job.precision != "int8":
            raise ModelError(
                "is quantized already", where=original.name, fix="calibrate the float model"
            )
        context = job_context(job, calibration, given, executor)
        options = job.recipe.passes
        stages = Pipeline(flow.exact_passes(options, passes, job.target)).run(graph, context)
        present = graph.facts.present()
        stages += Pipeline(flow.calibrating_passes(options), given=present).run(graph, context)
        for stage in stages:
            for line in stage.report.warnings:
                job.warn(f"{stage.name}: {line}")
        plan: Plan = graph.facts.get("plan")
        if not plan.activations:
            job.warn("found nothing to quantize; `qgraph inspect` says why")
        facts = {
            "model": record.source(original, model).model_dump(mode="json", exclude={"path"}),
            **_facts(graph, plan, job, stages),
            "data": None if calibration is None or dataset is None else calibration.describe(),
        }
    found = document_of(plan, graph.facts.get("encodings"), graph.facts.get("ranges"), facts)
    return Calibration(found, stages, job.warnings)


def default_output(model: str | os.PathLike[str]) -> Path:
    """Return where the encodings of a model go: `<model>.encodings.json` in the current folder."""
    return Path(f"{Path(model).stem}.encodings.json")


def _facts(graph: Graph, plan: Plan, job: Job, stages: Sequence[Stage]) -> dict[str, Any]:
    """What the encodings depend on beside model and data."""
    options = {stage.name: stage.options for stage in stages}
    calibrating = {k: v for k, v in options["calibrate"].items() if k not in _RUNNING}
    return {
        "graph": graph_key(graph, plan.activations),
        "target": job.target.name,
        "calibration": calibrating,
        "repairs": {name: options[name] for name in flow.REPAIRS},
    }
