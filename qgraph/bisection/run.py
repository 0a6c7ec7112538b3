"""The story of a bisection: passes, engine, units, causes, and what would help."""

import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from glob import escape
from itertools import islice
from math import nan
from pathlib import Path
from typing import Any

from qgraph import onnx_io
from qgraph.artifact import Artifact
from qgraph.bisection.causes import Cause
from qgraph.bisection.examine import examine
from qgraph.bisection.passes import Behind, first_loss, scoring
from qgraph.bisection.scores import Metric, Score, Scorer, SignalToNoise
from qgraph.bisection.units import Mixes, UnitScore, guilty, score_units
from qgraph.compiler import rewrite
from qgraph.data import DataSet, open_data
from qgraph.errors import EngineError, ModelError, UsageError
from qgraph.float_session import FloatSession
from qgraph.interface import Interface
from qgraph.job import Job, resolve
from qgraph.kv_cache import cache_axes, find_caches
from qgraph.listener import Listener
from qgraph.metrics import metric as find_metric
from qgraph.metrics.metric import Metric as AnyMetric
from qgraph.pipeline import Pass
from qgraph.preparation import job_context, split_data
from qgraph.recipe import Recipe
from qgraph.runtime import backend
from qgraph.search.goal import make_goal
from qgraph.search.judge import Judge
from qgraph.search.parts import open_parts
from qgraph.search.prepared import Prepared, prepare
from qgraph.search.units import find_units

# In which graphs on their way are scored: it runs whatever is in operators of the ONNX standard.
ENGINE = "onnxruntime-cpu"
SAMPLES = 16
# Of the samples, so many are looked at for causes.
_EXAMINED = 8


@dataclass(frozen=True)
class Bisection:
    """What was found.

    Attributes:
        unit: What scores are.
        floor: What is good enough.
        passes: The model behind every pass that changed it; the artifact in its engine comes last.
        first: The first of them that is not good enough; None if nothing is lost.
        units: Every unit in integers, in graph order; empty where units were not looked at.
        guilty: The smallest set of units that must stay in float; None where no set restores.
        restored: Score of the model with that set in float.
        causes: By unit of that set, what is wrong with it.
        command: The compile that leaves the set in float; empty where there is none.
        notes: What else there is to say.
    """

    unit: str
    floor: str
    passes: list[Behind]
    first: Behind | None
    units: list[UnitScore] = field(default_factory=list)
    guilty: list[str] | None = None
    restored: Score | None = None
    causes: Mapping[str, list[Cause]] = field(default_factory=dict)
    command: str = ""
    notes: list[str] = field(default_factory=list)


def bisect(
    artifact: str | os.PathLike[str],
    *,
    data: Any,
    model: Any = None,
    metric: str | AnyMetric | None = None,
    max_drop: str | float | None = None,
    min_sqnr_db: float | None = None,
    samples: int | None = None,
    passes: Sequence[Pass] = (),
    listener: Listener | None = None,
) -> Bisection:
    """Find the pass and the units that lose an artifact's accuracy.

    The model is compiled again, as the artifact's manifest says, and scored behind every pass.

    Args:
        artifact: The folder.
        data: What it was compiled with; with `metric`, labelled.
        model: The original, where it no longer lies where the manifest says.
        metric: What counts; default: signal to noise of the outputs.
        max_drop: By how much the metric may get worse: `0.5%`, or a number in its unit.
        min_sqnr_db: Least signal to noise; default: the recipe's, else 20 dB.
        samples: Score on at most so many samples; default: 16, with a metric all.
        passes: The caller's own passes, if the artifact was compiled with some.
        listener: Told how it goes.

    Raises:
        UsageError: The options do not go together.
        ArtifactError: There is no artifact, or it is damaged.
        ModelError: The original is gone, or has changed.
        DataError, EngineError: What the names say.
    """
    if (metric is None) != (max_drop is None):
        raise UsageError("a metric needs a drop", fix="give both --metric and --max-drop")
    if metric is not None and min_sqnr_db is not None:
        raise UsageError("--min-sqnr does not go with --metric", fix="leave one of them out")
    opened = Artifact.load(artifact)
    original = _original(opened, model)
    job = _job(opened, listener)
    with tempfile.TemporaryDirectory(prefix="qgraph-bisect-") as folder, ExitStack() as stack:
        scorer, calibration, seen = _scorer(
            opened, original, job, data, metric, max_drop, min_sqnr_db, samples, stack
        )
        behind = _passes(original, job, calibration, scorer, passes, Path(folder))
        behind += _engine(opened, scorer)
        first = first_loss(behind)
        found = Bisection(scorer.unit, scorer.floor, behind, first)
        if first is None:
            return found
        if first.name.startswith("engine"):
            found.notes.append(
                f"the graph is good enough and its engine loses it: `qgraph layers {artifact} "
                "--compare` shows where"
            )
            return found
        if first.exact:
            found.notes.append(
                f"{first.name} should keep the model's numbers and does not: its pattern or its "
                "arithmetic is wrong for this model, no unit is to blame"
            )
            return found
        if job.precision != "int8":
            found.notes.append(_ELSE.get(job.precision, _OTHERS))
            return found
        context = job_context(job, calibration, None)
        job.listener.stage("calibrating")
        prepared = prepare(onnx_io.load(original), job, context, own=passes)
        found = _units(prepared, job, scorer, seen, found, Path(folder))
        if found.guilty:
            found = replace(found, command=_command(opened, original, data, found.guilty))
        return found


_OTHERS = (
    "units are told apart for int8 alone: `qgraph explain` has each layer's error; "
    "`--set weight_only.skip_worse=N` gives the worst 8 bits, `--exclude` leaves nodes in float"
)
_ELSE = {
    "fp16": "units are told apart for int8 alone: `qgraph layers --compare` shows where numbers "
    "part, `--exclude` leaves nodes in float32",
}
_ELSE["bf16"] = _ELSE["fp16"]


# -- steps -----------------------------------------------------------------------------------------


def _original(artifact: Artifact, given: Any) -> Path:
    source = artifact.manifest.source
    path = Path(given) if given is not None else Path(source.path or "")
    path = path / "model.onnx" if path.is_dir() else path
    if (given is None and source.path is None) or not path.is_file():
        raise ModelError(
            f"the original {source.name!r} is not where it was",
            where=str(artifact.path),
            fix="pass --model FILE",
        )
    from qgraph import record

    if record.source(path, path).sha256 != source.sha256:
        raise ModelError(
            f"is not the {source.name!r} that {artifact.path} was compiled from",
            where=str(path),
            fix="pass the original with --model, or compile again",
        )
    return path


def _job(artifact: Artifact, listener: Listener | None) -> Job:
    manifest = artifact.manifest
    if manifest.precision == "as is":
        raise UsageError(
            f"{artifact.path} was left as it came: no pass can have lost anything",
            fix="`qgraph layers --compare` shows where an engine's numbers part",
        )
    recipe = Recipe.model_validate(manifest.recipe)
    return resolve(manifest.target, manifest.precision, recipe, (), (), listener, force=True)


def _scorer(
    artifact: Artifact,
    original: Path,
    job: Job,
    data: Any,
    metric: str | AnyMetric | None,
    max_drop: str | float | None,
    min_sqnr_db: float | None,
    samples: int | None,
    stack: ExitStack,
) -> tuple[Scorer, DataSet | None, list[dict[str, Any]]]:
    """Who scores, what to calibrate with, and samples to look at."""
    job.listener.stage("running the original")
    graph = onnx_io.load(original)
    if metric is not None:
        most = make_goal(max_drop, "latency", None, None).max_drop
        chosen = find_metric(metric) if isinstance(metric, str) else metric
        bound = chosen.bind([original])
        parts = open_parts(data, graph, bound, job.recipe.images, samples, job.recipe.samples)
        answering = stack.enter_context(backend(ENGINE).open(original))
        judge = Judge(bound, parts.search, answering)
        feeds = open_data(parts.calibration, graph.signature(), caches=cache_axes(graph))
        calibration = feeds.split(job.recipe.verify.held_out)[0]
        return Metric(judge, most or 0.0), calibration, parts.calibration[:_EXAMINED]
    recorded = (artifact.manifest.data or {}).get("samples")
    _, kept, held_out = split_data(graph, data, recorded, job)
    source = held_out if held_out is not None else kept
    if source is None:
        source = open_data("random", graph.signature(), caches=cache_axes(graph))
    seen = [dict(each) for each in islice(source, samples or SAMPLES)]
    least = min_sqnr_db
    if least is None:
        least = job.recipe.verify.sqnr_floor(job.precision)
    state = {cache.output for cache in find_caches(graph)}
    return SignalToNoise(original, seen, 20.0 if least is None else least, state), kept, seen


def _passes(
    original: Path,
    job: Job,
    calibration: DataSet | None,
    scorer: Scorer,
    passes: Sequence[Pass],
    folder: Path,
) -> list[Behind]:
    found: list[Behind] = []
    hook = scoring(scorer, folder, found, job.listener.stage, ENGINE)
    context = job_context(job, calibration, None)
    rewrite(onnx_io.load(original), job, context, passes, [hook], folder)
    return found


def _engine(artifact: Artifact, scorer: Scorer) -> list[Behind]:
    """The artifact in its own engine, where that can be opened here."""
    engine = artifact.manifest.engine
    if engine is None:
        return []
    name = f"engine: {engine.backend}"
    interface = Interface.from_json(artifact.manifest.io) if artifact.manifest.io else Interface()
    try:
        with FloatSession(artifact.open(), interface) as session:
            return [Behind(name, 0, scorer.score(session))]
    except EngineError as error:
        return [Behind(name, 0, Score(nan, True, f"not run: {error}"))]


def _units(
    prepared: Prepared,
    job: Job,
    scorer: Scorer,
    seen: list[dict[str, Any]],
    found: Bisection,
    folder: Path,
) -> Bisection:
    units = find_units(prepared.graph, job.target)
    mixes = Mixes(prepared, units, scorer, folder, ENGINE)
    job.listener.stage("scoring units")
    scores = score_units(mixes, job.listener.progress)
    job.listener.stage("looking for the smallest set")
    names = guilty(mixes, scores)
    if not names:
        found.notes.append("units in integers lose nothing here: what is lost is lost elsewhere")
        return replace(found, units=scores, guilty=names)
    job.listener.stage("looking for causes")
    floating = folder / "float.onnx"
    onnx_io.save(prepared.graph, floating)
    blamed = [unit for unit in units if unit.name in names]
    return replace(
        found,
        units=scores,
        guilty=[unit.name for unit in blamed],
        restored=mixes.without(names),
        causes=examine(prepared, blamed, floating, seen[:_EXAMINED]),
    )


def _command(artifact: Artifact, original: Path, data: Any, names: Sequence[str]) -> str:
    """The compile that leaves nodes in float."""
    manifest = artifact.manifest
    words = ["qgraph", "compile", str(original), "--target", manifest.target]
    words += ["--precision", manifest.precision]
    name = manifest.recipe.get("name", "default")
    words += ["--recipe", name] if name != "default" else []
    words += ["--data", data] if isinstance(data, str) else ["--data", "D"]
    for each in (*manifest.recipe.get("exclude", ()), *map(escape, names)):
        words += ["--exclude", each]
    return shlex.join(words)
