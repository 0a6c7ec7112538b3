"""Whole models in every engine of the target: timed in turn, ours and the float ones."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from qgraph import onnx_io
from qgraph.engine_choice import Selection
from qgraph.errors import EngineError
from qgraph.manifest import Timing
from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions, Tunable
from qgraph.runtime.choose import Candidate, Measured, fastest
from qgraph.runtime.memory import peak_memory
from qgraph.search.costs import Engine
from qgraph.target import Target

# Time for all runs of one round of measurements.
BUDGET_S = 3.0


@dataclass(frozen=True)
class Whole:
    """A whole model that can be built.

    Attributes:
        name: What to call it; `fp32` is the float model.
        precision: The precision to compile it with.
        model: Its file.
        options: The engine's options.
        floats: Layers left in float, where it is a mix of weights; None for others.
        ways: Where it is a mix, by name of the unit the way that it has; None for others.
        loss: What is predicted of its loss; 0 where nothing is.
        what: What it consists of, for people; empty where `precision` says it.
        draft: Whether its weights are rounded to nearest until it is known that it may be taken.
        judged: The same in operators that the reference has, where the model has others.
    """

    name: str
    precision: str
    model: Path
    options: EngineOptions = field(default_factory=EngineOptions)
    floats: tuple[str, ...] | None = None
    ways: tuple[tuple[str, str], ...] | None = None
    loss: float = 0.0
    what: str = ""
    draft: bool = False
    judged: Path | None = None

    @property
    def is_float(self) -> bool:
        """Whether nothing of it is in integers."""
        return self.precision in ("fp32", "fp16", "bf16")

    @property
    def is_mix(self) -> bool:
        """Whether it was put together unit by unit."""
        return self.floats is not None or self.ways is not None


@dataclass(frozen=True)
class Timed:
    """A whole model in its fastest engine.

    Attributes:
        whole: The model.
        engine: The engine.
        p50_ms: Median latency, milliseconds.
        p90_ms: What nine runs of ten stay below.
        relative: Time relative to the fastest of the round: of what one run in ten stays below,
            which other work on the machine disturbs least.
        bytes: Size of its file.
        memory: What opening and running it adds to a process, bytes; 0 where that was not measured.
    """

    whole: Whole
    engine: Engine
    p50_ms: float
    p90_ms: float
    relative: float
    bytes: int
    memory: int = 0


@dataclass(frozen=True)
class Round:
    """One round of measurements.

    Attributes:
        timed: Each model in its fastest engine, fastest first.
        measured: Every model in every engine; of estimates only what could not be estimated.
        estimated: How times were estimated; empty where they were measured.
    """

    timed: tuple[Timed, ...]
    measured: tuple[Measured, ...]
    estimated: str = ""

    def of(self, name: str) -> Timed | None:
        """Return the model of that name, None where no engine runs it."""
        return next((each for each in self.timed if each.whole.name == name), None)

    def selection(self, name: str) -> Selection:
        """Return what a compile has to know of the engine of one model."""
        found = self.of(name)
        assert found is not None
        if self.estimated:
            return Selection(not_timed=f"times are {self.estimated}")
        floats = [each.relative for each in self.timed if each.whole.is_float]
        return Selection(
            found.engine.backend,
            asdict(found.engine.options),
            [_timing(each, found.whole) for each in self.measured],
            found.relative / min(floats) if floats else None,
        )


def time_whole(
    target: Target,
    models: Sequence[Whole],
    feeds: Mapping[str, Any],
    budget_s: float | None = None,
    engine: Engine | None = None,
    asked: Mapping[str, BaseModel | None] | None = None,
    known: dict[str, set[str]] | None = None,
) -> Round:
    """Time models in all engines of the target, in turn in one run.

    An engine that runs a model in several ways, such as with CUDA graphs, is given the ways that are
    best for the float models; see `_labels`.

    Args:
        target: Whose engines.
        models: The models; names are distinct.
        feeds: One sample.
        budget_s: Seconds for all runs.
        engine: The only one to time them in, as it is set.
        asked: By engine, what the user has decided of how it runs.
        known: By engine, the ways that an earlier round found best; added to.

    Raises:
        EngineError: No engine of the target runs here, or none runs the float model.
    """
    names = target.engines if engine is None else (engine.backend,)
    reasons = [(name, backend(name).unavailable()) for name in names]
    usable = [name for name, reason in reasons if reason is None]
    if not usable:
        why = "; ".join(reason for _, reason in reasons if reason) or target.no_engine
        raise EngineError(
            f"no engine of {target.name} runs here, so nothing can be measured: {why}",
            fix="search where the engine runs, or compile without --max-drop",
        )
    budget = budget_s or BUDGET_S
    ways = {} if known is None else known
    for name in usable if engine is None else ():
        if name not in ways:
            ways[name] = _labels(name, models, feeds, budget, (asked or {}).get(name))
    by_label: dict[str, tuple[Candidate, Whole]] = {}
    for model in models:
        for name in usable:
            if engine is not None:
                options = {"": engine.options.engine}
            else:
                every = _variants(name, model, (asked or {}).get(name))
                options = {way: own for way, own in every.items() if way in ways[name]}
            for way, own in options.items():
                label = f"{name} {model.name}" + (f", {way}" if way else "")
                chosen = replace(model.options, engine=own)
                by_label[label] = Candidate(name, model.model, chosen, label=label), model
    candidates = [candidate for candidate, _ in by_label.values()]
    measured = fastest(candidates, feeds, budget_s=budget)
    results = [(each, each.result) for each in measured if each.result is not None]
    results.sort(key=lambda pair: pair[1].p10_ms)
    timed: dict[str, Timed] = {}
    for each, result in results:
        candidate, model = by_label[str(each.candidate)]
        if model.name not in timed:
            timed[model.name] = Timed(
                model,
                Engine(candidate.backend, candidate.options),
                result.p50_ms,
                result.p90_ms,
                result.p10_ms / results[0][1].p10_ms,
                model.model.stat().st_size,
            )
    if not timed:
        raise EngineError("; ".join(f"{each.candidate}: {each.reason}" for each in measured))
    return Round(tuple(timed.values()), tuple(measured))


def _variants(name: str, model: Whole, asked: BaseModel | None) -> dict[str, Mapping[str, Any]]:
    """By label, the engine's options for each way to run a model; the plainest first."""
    engine = backend(name)
    if not isinstance(engine, Tunable):
        return {"": {}}
    found = engine.variants(model.precision, onnx_io.operators(model.model), asked)
    return {label: options.engine for label, options in found.items()}


def _labels(
    name: str,
    models: Sequence[Whole],
    feeds: Mapping[str, Any],
    budget_s: float,
    asked: BaseModel | None,
) -> set[str]:
    """The ways to time all models in: the plainest, and the best of each whole float model.

    Every model in every way would hold dozens of sessions open.
    """
    found: set[str] = set()
    for model in models:
        variants = _variants(name, model, asked)
        found.add(next(iter(variants)))
        if len(variants) == 1 or not model.is_float or model.is_mix:
            continue
        tried = [
            Candidate(name, model.model, replace(model.options, engine=own), label=f"way {label}")
            for label, own in variants.items()
        ]
        best = fastest(tried, feeds, budget_s=budget_s / 2)[0]
        if best.result is not None:
            found.add(str(best.candidate).removeprefix("way "))
    return found


def with_memory(found: Round, feeds: Mapping[str, Any]) -> Round:
    """Measure each model's peak memory, in a process of its own."""
    timed = [
        replace(
            each,
            memory=peak_memory(
                each.whole.model, backend(each.engine.backend), feeds, each.engine.options
            ).model_bytes,
        )
        for each in found.timed
    ]
    return replace(found, timed=tuple(timed))


def _timing(measured: Measured, chosen: Whole) -> Timing:
    """The manifest's line; the chosen model and the float one are called as in other compiles."""
    candidate, result = measured.candidate, measured.result
    label = str(candidate)
    own = f"{candidate.backend} {chosen.name}"
    if candidate.model == chosen.model and (label == own or label.startswith(f"{own}, ")):
        label = f"{candidate.backend} {chosen.precision}{label.removeprefix(own)}"
    elif label == f"{candidate.backend} fp32":
        label = f"{label} (before)"
    if result is None:
        return Timing(candidate=label, reason=measured.reason)
    return Timing(
        candidate=label,
        p50_ms=result.p50_ms,
        p90_ms=result.p90_ms,
        relative_time=result.relative_time,
    )
