"""Which engine is fastest on this model and machine: by measuring, never by assuming."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from qgraph.errors import EngineError, QGraphError, UsageError
from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions, Session
from qgraph.runtime.bench import REST_S, BenchResult, bench
from qgraph.runtime.tensors import Array
from qgraph.runtime.wrapped import OnDevice, OnOwnFeeds

_WARMUP_SHARE = 0.15
# Every round rests before each session; this many tell engines apart that differ by 10%.
_ROUNDS = 4


@dataclass(frozen=True)
class Candidate:
    """One way to run a model: a registered backend's name, its options, the model file.

    `feeds` are its own where it takes others than the rest of the candidates.
    """

    backend: str
    model: Path
    options: EngineOptions = field(default_factory=EngineOptions)
    label: str = ""
    feeds: Mapping[str, Array] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        """Return the label, or the backend and what is not its default."""
        precision = self.options.float_precision
        return self.label or (self.backend if precision == "f32" else f"{self.backend} {precision}")


@dataclass(frozen=True)
class Measured:
    """A candidate with its latency, or with the reason why it has none.

    Attributes:
        candidate: What was measured.
        result: Latency with inputs and outputs where the engine computes; `relative_time` is
            against the fastest candidate. None if it can't run.
        reason: Why it can't run; empty if it can.
        through_host: Latency with numpy arrays in and out, where the engine computes elsewhere.
    """

    candidate: Candidate
    result: BenchResult | None
    reason: str = ""
    through_host: BenchResult | None = None

    def as_json(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {
            "candidate": str(self.candidate),
            "backend": self.candidate.backend,
            "options": asdict(self.candidate.options),
            "model": str(self.candidate.model),
            "result": self.result.as_json() if self.result else None,
            "reason": self.reason,
            "through_host": self.through_host.as_json() if self.through_host else None,
        }


def fastest(
    candidates: Sequence[Candidate], feeds: Mapping[str, Array], budget_s: float = 10.0
) -> list[Measured]:
    """Measure candidates in turn on the same feeds.

    All that work stay open together while they are timed. Where an engine computes elsewhere than on
    the host, what is compared is a run on buffers there; the time with numpy arrays, which are copied
    there and back, is measured beside it.

    Args:
        candidates: What to measure; the same label twice is refused.
        feeds: Arrays by input name, the same for all.
        budget_s: Time for all runs together; opening the sessions comes on top, and every
            candidate gets at least a few runs however long they take.

    Returns:
        Fastest first, then those that are unavailable, refuse the model or fail on the feeds, in
        the order given, each with the reason.

    Raises:
        UsageError: Two candidates have the same label, or the budget is not positive.
    """
    labels = [str(candidate) for candidate in candidates]
    if repeated := next((label for label in labels if labels.count(label) > 1), None):
        raise UsageError(f"two candidates are called {repeated!r}", fix="give them labels")
    if budget_s <= 0:
        raise UsageError(f"budget_s is {budget_s}", fix="give more than 0 seconds")
    refused: list[Measured] = []
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        elsewhere: dict[str, Session] = {}
        for candidate in candidates:
            label, own = str(candidate), feeds if candidate.feeds is None else candidate.feeds
            try:
                session = _try(candidate, own, stack)
                if session.device == "cpu":
                    sessions[label] = OnOwnFeeds(session, own)
                else:
                    sessions[label] = OnDevice(session, own)
                    elsewhere[label] = OnOwnFeeds(session, own)
            except QGraphError as error:
                refused.append(Measured(candidate, None, str(error)))
        results = _bench(sessions, feeds, budget_s)
        through = {each.name: each for each in _bench(elsewhere, feeds, budget_s / 2)}
    by_label = dict(zip(labels, candidates, strict=True))
    measured = [Measured(by_label[r.name], r, "", through.get(r.name)) for r in results]
    return [*measured, *refused]


def _try(candidate: Candidate, feeds: Mapping[str, Array], stack: ExitStack) -> Session:
    """Open a candidate and run it once; many engines refuse only when they run."""
    engine = backend(candidate.backend)
    if reason := engine.unavailable():
        raise EngineError(reason)
    session = engine.open(candidate.model, candidate.options)
    try:
        session.run(feeds)
    except QGraphError:
        session.close()
        raise
    return stack.enter_context(session)


def _bench(
    sessions: Mapping[str, Session], feeds: Mapping[str, Array], budget_s: float
) -> list[BenchResult]:
    """Results, fastest first, relative to the fastest."""
    if not sessions:
        return []
    share = budget_s / len(sessions)
    warmup = share * _WARMUP_SHARE
    # Resting is for threads that spin; sessions on a device have none that matter.
    spins = any(session.device == "cpu" for session in sessions.values())
    results = bench(
        sessions,
        feeds,
        seconds=share - warmup,
        warmup_s=warmup,
        rounds=_ROUNDS,
        rest_s=REST_S if spins else 0.0,
    )
    return relative_to_fastest(results)


def relative_to_fastest(results: Sequence[BenchResult]) -> list[BenchResult]:
    """Sort by latency and express every result relative to the fastest."""
    ordered = sorted(results, key=lambda result: result.relative_time)
    base = ordered[0].relative_time
    return [
        replace(
            result,
            relative_time=result.relative_time / base,
            relative_low=result.relative_low / base,
            relative_high=result.relative_high / base,
        )
        for result in ordered
    ]
