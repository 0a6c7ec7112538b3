"""Chooses the engine, and how it runs, by measuring every way of the target's on the user's model."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from qgraph import onnx_io
from qgraph.engine_build import EngineBuild
from qgraph.errors import EngineError
from qgraph.manifest import Engine, Timing
from qgraph.runtime import backend
from qgraph.runtime.assignment import left_behind
from qgraph.runtime.backend import EngineOptions, Session, Tunable
from qgraph.runtime.choose import Candidate, Measured, fastest
from qgraph.runtime.reference import open_reference
from qgraph.target import Target

BUDGET_S = 3.0


@dataclass
class Selection:
    """The engine to open an artifact in, and what was measured.

    Attributes:
        backend: Name of the fastest backend; empty where none of the target's runs here.
        options: Its options.
        timings: Every candidate, fastest first, float ones included; then those that can't run.
        slower_than_float: Median time relative to the fastest float candidate; None if there is
            none to compare with.
        not_timed: Why nothing was timed; empty where it was.
        model: The file that was fastest; None where nothing was timed.
        candidate: Name of the fastest among the timings.
        warnings: What the user should know of how it runs.
    """

    backend: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    slower_than_float: float | None = None
    not_timed: str = ""
    model: Path | None = None
    candidate: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def engine(self) -> Engine | None:
        """The manifest's entry; None where no engine runs here."""
        if not self.backend:
            return None
        return Engine(backend=self.backend, options=self.options, candidate=self.candidate)

    def open(self, model: Path) -> Session:
        """Open `model` in the selected engine, or unoptimised where there is none."""
        if not self.backend:
            return open_reference(model)
        return backend(self.backend).open(model, EngineOptions(**self.options))


def select_engine(
    target: Target,
    precision: str,
    model: Path,
    floating: Path | None,
    feeds: Mapping[str, Any],
    *,
    float_feeds: Mapping[str, Any] | None = None,
    own: Mapping[str, Path] | None = None,
    built: EngineBuild | None = None,
    asked: Mapping[str, BaseModel | None] | None = None,
) -> Selection:
    """Time `model` in all of the target's engines, in turn with the float model.

    Args:
        target: Its `engines` are the candidates, each in all its variants.
        precision: The model's.
        model: What was compiled.
        floating: The same model in float32, or None where `model` is that.
        feeds: One sample.
        float_feeds: The same for `floating` where that takes other inputs.
        own: By engine, the same as `model` in operators that it alone has.
        built: The engine that stands beside `model`, if one was built.
        asked: By engine, what the user has decided of how it runs.

    Raises:
        EngineError: No engine can run the model; each one's reason is given.
    """
    if all(backend(name).unavailable() is not None for name in target.engines):
        return _without_engine(target, precision, built)
    operators = onnx_io.operators(model)
    ways = {
        name: _variants(name, precision, operators, (asked or {}).get(name))
        for name in target.engines
    }
    ours = [
        Candidate(name, path, options, _title(name, precision, label, kind))
        for name in target.engines
        for path, kind in [(model, ""), ((own or {}).get(name), "its own operators")]
        if path is not None
        for label, options in ways[name].items()
    ]
    # Where each engine runs in one way only, the float model is timed in the same run; else only
    # in the way that turns out fastest, since many open sessions take memory.
    together = all(len(each) == 1 for each in ways.values())
    before = [
        Candidate(name, floating, label=f"{_title(name, 'fp32')} (before)", feeds=float_feeds)
        for name in target.engines
        if floating is not None
    ]
    measured = fastest([*ours, *before] if together else ours, feeds, budget_s=BUDGET_S)
    working = [each for each in measured if each.result is not None]
    best = next((each for each in working if each.candidate.model != floating), None)
    if best is None or best.result is None:
        reasons = "; ".join(f"{m.candidate}: {m.reason}" for m in measured)
        raise EngineError(f"no engine runs the compiled model ({reasons})")
    chosen = best.candidate
    if floating is not None and not together:
        measured += _before(best, floating, feeds, float_feeds)
    float_times = [_time(m) for m in measured if m.candidate.model == floating and m.result]
    return Selection(
        chosen.backend,
        asdict(chosen.options),
        [_timing(each) for each in measured],
        _time(best) / min(float_times) if float_times else None,
        model=chosen.model,
        candidate=str(chosen),
        warnings=left_behind(
            backend(chosen.backend), chosen.model, feeds, chosen.options, best.result.p50_ms
        ),
    )


def _before(
    best: Measured,
    floating: Path,
    feeds: Mapping[str, Any],
    float_feeds: Mapping[str, Any] | None,
) -> list[Measured]:
    """Time the float model in the way that is best for ours, in turn with it."""
    ours = best.candidate
    way = str(ours).partition(", ")[2]
    title = f"{_title(ours.backend, 'fp32', way)} (before)"
    plain = Candidate(ours.backend, floating, ours.options, title, float_feeds)
    found = fastest([ours, plain], feeds, budget_s=BUDGET_S / 2)
    by_model = {each.candidate.model: each for each in found}
    result, own = by_model[floating].result, by_model[ours.model].result
    if result is None or own is None:
        return [by_model[floating]]
    relative = result.relative_time / own.relative_time * _time(best)
    return [replace(by_model[floating], result=replace(result, relative_time=relative))]


def _title(engine: str, precision: str, *ways: str) -> str:
    """What a candidate is called."""
    return ", ".join([f"{engine} {precision}", *filter(None, ways)])


def _variants(
    name: str, precision: str, operators: Collection[str], asked: BaseModel | None
) -> Mapping[str, EngineOptions]:
    """Ways to run a model of that precision, by label."""
    engine = backend(name)
    if not isinstance(engine, Tunable):
        return {"": EngineOptions()}
    return engine.variants(precision, operators, asked)


def _without_engine(target: Target, precision: str, built: EngineBuild | None) -> Selection:
    """Say why nothing is timed, and what was built all the same."""
    timings, reasons = [], []
    for name in target.engines:
        reason = backend(name).unavailable() or ""
        if built is not None and built.backend == name:
            reason = f"{built.built}; {reason}"
        timings.append(Timing(candidate=f"{name} {precision}", reason=reason))
        reasons.append(reason)
    why = "; ".join(reasons) or target.no_engine
    return Selection(timings=timings, not_timed=f"no engine of {target.name} runs here: {why}")


def _time(measured: Measured) -> float:
    assert measured.result is not None
    return measured.result.relative_time


def _timing(measured: Measured) -> Timing:
    result = measured.result
    if result is None:
        return Timing(candidate=str(measured.candidate), reason=measured.reason)
    return Timing(
        candidate=str(measured.candidate),
        p50_ms=result.p50_ms,
        p90_ms=result.p90_ms,
        relative_time=result.relative_time,
        through_host_p50_ms=measured.through_host.p50_ms if measured.through_host else None,
    )
