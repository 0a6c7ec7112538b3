"""Scores models and artifacts on labelled data, beside their originals."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qgraph.artifact import MANIFEST, Artifact
from qgraph.data import open_data
from qgraph.data.opening import Given
from qgraph.errors import ArtifactError, DataError, UsageError
from qgraph.float_session import FloatSession
from qgraph.interface import Interface
from qgraph.kv_cache import cache_axes_of
from qgraph.listener import Listener, Silent
from qgraph.metrics import metric as find_metric
from qgraph.metrics.comparison import Interval, compare, estimate
from qgraph.metrics.metric import Contributions, Metric
from qgraph.metrics.scoring import score_data, sided
from qgraph.record import find_original
from qgraph.runnable import Runnable, image_options, runnable
from qgraph.runtime.backend import Session

Model = str | os.PathLike[str] | Artifact

# With fewer samples, percentile intervals hold the true score less often than they say.
FEW_SAMPLES = 30


@dataclass(frozen=True)
class Versus:
    """The original on the same samples, and what changed from it.

    Attributes:
        model: Its file.
        engine: Backend that ran it.
        score: Its score.
        interval: 95% confidence interval of its score.
        change: Score of the artifact minus score of the original.
        change_interval: 95% confidence interval of the change; both models are scored on the same
            draws.
    """

    model: str
    engine: str
    score: float
    interval: Interval
    change: float
    change_interval: Interval


@dataclass(frozen=True)
class Evaluation:
    """What a model scored.

    Attributes:
        model: The model or artifact.
        engine: Backend that ran it.
        metric: Name of the metric.
        better: Whether higher or lower scores are better.
        samples: Rows that were scored.
        score: The score.
        interval: 95% confidence interval of the score, from drawing the samples again.
        versus: The comparison with the original; None where there is none.
        notes: What to keep in mind when reading the numbers.
    """

    model: str
    engine: str
    metric: str
    better: Literal["higher", "lower"]
    samples: int
    score: float
    interval: Interval
    versus: Versus | None
    notes: tuple[str, ...]


def evaluate(
    model: Model,
    *,
    metric: str | Metric,
    data: Given,
    versus: Model | None = None,
    samples: int | None = None,
    engine: str | None = None,
    recipe: str | None = None,
    listener: Listener | None = None,
) -> Evaluation:
    """Score one model or artifact; see `evaluate_all`."""
    return evaluate_all(
        [model],
        metric=metric,
        data=data,
        versus=versus,
        samples=samples,
        engine=engine,
        recipe=recipe,
        listener=listener,
    )[0]


def evaluate_all(
    models: Sequence[Model],
    *,
    metric: str | Metric,
    data: Given,
    versus: Model | None = None,
    samples: int | None = None,
    engine: str | None = None,
    recipe: str | None = None,
    listener: Listener | None = None,
) -> list[Evaluation]:
    """Score models and artifacts on the same samples, in one pass over the data.

    Artifacts with integer inputs or outputs are fed and read in the original's floats.

    Args:
        models: ONNX files and artifacts.
        metric: Name of a metric, `package.module:function`, or one from `qgraph.metrics.metric`.
        data: See `qgraph.data.open_data`; labels are arrays under names that are no inputs.
        versus: What to compare with; default: the original of each artifact, if it lies where it
            was compiled from and has not changed.
        samples: Use at most so many samples.
        engine: Backend for all; default: the artifact's, and onnxruntime's CPU provider.
        recipe: Recipe with the preprocessing of images; default: the artifact's.
        listener: Told how it goes.

    Returns:
        One evaluation for each model, in order.

    Raises:
        UsageError: A name or combination is wrong.
        DataError: The data can't be read, or does not fit the model or the metric.
        ModelError: A model gives NaN; the message names the sample.
        ArtifactError, EngineError: What the names say.
    """
    told = listener or Silent()
    chosen = find_metric(metric) if isinstance(metric, str) else metric
    runs = [runnable(_path(model), engine) for model in models]
    originals = _originals(runs, versus, engine, told)
    if chosen.versus_original and len(originals) < len({run.path for run in runs}):
        raise UsageError(
            f"{chosen.name} compares with the original, which is not known",
            where=next(run.path for run in runs if run.path not in originals),
            fix="name it with --vs",
        )
    # Originals first: what they can't do is no artifact's fault.
    every = {run.path: run for run in (*originals.values(), *runs)}
    chosen = chosen.bind([run.model for run in every.values()])
    with ExitStack() as stack:
        told.stage("opening")
        sessions = {name: stack.enter_context(_open(run)) for name, run in every.items()}
        fullest = max(sessions, key=lambda name: len(sessions[name].inputs))
        inputs = sessions[fullest].inputs
        caches = cache_axes_of(every[fullest].model, inputs)
        images = (image_options(run, recipe) for run in every.values())
        dataset = open_data(
            data,
            sided(inputs, chosen.sides),
            images=next((each for each in images if each is not None), None),
            caches={side + name: axis for side in chosen.sides for name, axis in caches.items()},
            samples=samples,
            labelled=True,
        )
        if dataset.random:
            told.warn("random data says nothing about accuracy")
        told.stage("scoring")
        found = score_data(
            sessions,
            {name: original.path for name, original in originals.items()},
            chosen,
            dataset,
            lambda done: told.progress("samples", done, dataset.expected),
        )
        return [_evaluation(run, originals.get(run.path), found, sessions, chosen) for run in runs]


def _path(model: Model) -> str:
    return str(model.path) if isinstance(model, Artifact) else os.fspath(model)


def _originals(
    runs: Sequence[Runnable], versus: Model | None, engine: str | None, told: Listener
) -> dict[str, Runnable]:
    """Return what each model is compared with, by the model's path."""
    if versus is not None:
        return dict.fromkeys((run.path for run in runs), runnable(_path(versus), engine))
    found = {}
    for run in runs:
        if not (Path(run.path) / MANIFEST).is_file():
            continue
        try:
            original = find_original(Artifact.load(run.path))
        except ArtifactError as error:
            told.warn(f"{run.path} is compared with nothing: {error}")
            continue
        found[run.path] = runnable(original, engine)
    return found


def _open(run: Runnable) -> Session:
    session, interface = run.open(), Interface.from_json(run.io)
    return FloatSession(session, interface) if interface else session


def _evaluation(
    run: Runnable,
    original: Runnable | None,
    found: dict[str, Contributions],
    sessions: dict[str, Session],
    metric: Metric,
) -> Evaluation:
    ours, versus = found[run.path], None
    try:
        if original is None or metric.versus_original:
            own = estimate(metric, ours)
        else:
            both = compare(metric, ours, found[original.path])
            own = both.ours
            versus = Versus(
                model=original.path,
                engine=sessions[original.path].engine,
                score=both.theirs.value,
                interval=both.theirs.interval,
                change=both.change.value,
                change_interval=both.change.interval,
            )
    except DataError as error:
        error.where = run.path
        raise
    return Evaluation(
        model=run.path,
        engine=sessions[run.path].engine,
        metric=metric.name,
        better=metric.better,
        samples=len(ours),
        score=own.value,
        interval=own.interval,
        versus=versus,
        notes=_notes(len(ours), own.interval),
    )


def _notes(count: int, interval: Interval) -> tuple[str, ...]:
    notes = []
    if count < FEW_SAMPLES:
        notes.append(f"{count} samples are few: the intervals are wide, and rough themselves")
    if interval[0] == interval[1]:
        notes.append(
            "all samples score alike, so drawing them again shows no spread; that is no certainty"
        )
    return tuple(notes)
