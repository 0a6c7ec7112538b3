"""Chooses the engine by measuring every one of the target's on the user's model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qgraph.engine_build import EngineBuild
from qgraph.errors import EngineError
from qgraph.manifest import Engine, Timing
from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions, Session
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
    """

    backend: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    slower_than_float: float | None = None
    not_timed: str = ""
    model: Path | None = None

    @property
    def engine(self) -> Engine | None:
        """The manifest's entry; None where no engine runs here."""
        return Engine(backend=self.backend, options=self.options) if self.backend else None

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
) -> Selection:
    """Time `model` in all of the target's engines, in turn with the float model.

    Args:
        target: Its `engines` are the candidates.
        precision: bf16 lets OpenVINO compute the float parts in bf16; every other precision asks
            for true float32, which OpenVINO does not do by itself on machines with AMX.
        model: What was compiled.
        floating: The same model in float32, or None where `model` is that.
        feeds: One sample.
        float_feeds: The same for `floating` where that takes other inputs.
        own: By engine, the same as `model` in operators that it alone has.
        built: The engine that stands beside `model`, if one was built.

    Raises:
        EngineError: No engine can run the model; each one's reason is given.
    """
    if all(backend(name).unavailable() is not None for name in target.engines):
        return _without_engine(target, precision, built)
    candidates = []
    for name in target.engines:
        wants_bf16 = precision == "bf16" and name == "openvino"
        options = EngineOptions(float_precision="bf16" if wants_bf16 else "f32")
        candidates.append(Candidate(name, model, options, label=f"{name} {precision}"))
        if name in (own or {}):
            label = f"{name} {precision}, its own operators"
            candidates.append(Candidate(name, (own or {})[name], options, label=label))
        if floating is not None:
            label = f"{name} fp32 (before)"
            candidates.append(Candidate(name, floating, label=label, feeds=float_feeds))
    measured = fastest(candidates, feeds, budget_s=BUDGET_S)
    working = [each for each in measured if each.result is not None]
    ours = [each for each in working if each.candidate.model != floating]
    if not ours:
        reasons = "; ".join(f"{m.candidate}: {m.reason}" for m in measured)
        raise EngineError(f"no engine runs the compiled model ({reasons})")
    best = ours[0]
    ratio = None
    float_times = [_time(each) for each in working if each.candidate.model == floating]
    if float_times:
        ratio = _time(best) / min(float_times)
    return Selection(
        best.candidate.backend,
        asdict(best.candidate.options),
        [_timing(each) for each in measured],
        ratio,
        model=best.candidate.model,
    )


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
    )
