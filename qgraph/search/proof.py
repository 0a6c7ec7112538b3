"""Proves the promise: the best model that keeps it on samples that nothing was chosen by."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qgraph.errors import EngineError
from qgraph.manifest import Promise
from qgraph.search.goal import Goal
from qgraph.search.judge import Judge, Verdict
from qgraph.search.whole import Round, Timed, Whole
from qgraph.search.workspace import Workspace

# Two runs of one model differ by about this much: an integer model must win more.
NO_GAIN = 0.99
# The mix that was predicted to be the fastest goes before others that seem faster by less.
_NOISE = 1.05
# A model that fails on the samples of the proof is no longer judged by samples it never met, and
# each further one has another chance to pass by luck: so many are tried before the float model.
_LOOKS = 3
_LESS = 1.5


@dataclass(frozen=True)
class Proof:
    """The model that was chosen, and what is promised of it.

    Attributes:
        whole: The model.
        promise: For the manifest.
        round: The measurement of its latency.
    """

    whole: Whole
    promise: Promise
    round: Round


def prove(
    space: Workspace, last: Round, judge: Judge, only: str | None = None, first: Round | None = None
) -> Proof:
    """Try models from the best on, until one keeps the promise on the samples of the proof.

    Args:
        space: The search.
        last: What may be chosen, timed.
        judge: Scores on the samples of the proof.
        only: Take this one, whether it keeps the promise or not.
        first: What was timed before the search, for reasons.
    """
    goal = space.goal
    notes: list[str] = []
    ordered = rank(last.timed, goal)
    floating = next(each for each in ordered if each.whole.name == "fp32")
    if goal.max_drop is None:
        ordered = _least_loss_first(space, ordered, notes)
    if only is not None:
        ordered = [each for each in ordered if each.whole.name == only]
    looks, limit, seen = 0, float("inf"), None
    failed: set[str] = set()
    passed_over: list[Timed] = []
    waiting = list(ordered)
    while waiting:
        timed = waiting.pop(0)
        if timed.whole.name == "fp32" and passed_over and looks < _LOOKS and only is None:
            # The safest that is left goes before the float model, though it loses hardly less.
            waiting.insert(0, timed)
            timed, limit = min(passed_over, key=lambda each: each.whole.loss), float("inf")
            passed_over.clear()
        name = timed.whole.name
        if only is None and name != "fp32":
            searched = _searched(space, timed, notes)
            if searched is None:
                continue
            if not searched.holds(goal.max_drop):
                notes.append(f"{name} loses more than is allowed on the samples searched with")
                continue
            if looks == _LOOKS or timed.whole.loss > limit:
                if timed.whole.loss < limit * _LESS:
                    passed_over.append(timed)
                continue
        looks += 1
        try:
            verdict = _verdict(space, timed, judge)
        except EngineError as error:
            if name in ("fp32", only):
                raise
            notes.append(f"{name} fails on the samples of the proof: {error}")
            continue
        seen = (timed, verdict)
        if verdict.holds(goal.max_drop) or only is not None:
            break
        failed.add(name)
        # What loses hardly less would fail as well.
        limit = min(limit, (timed.whole.loss or limit) / _LESS)
        notes.append(
            f"{name} lost {verdict.bound:.4g} on the samples of the proof: "
            "a model that loses less was taken"
        )
    if seen is None:  # nothing but the float model could be run
        seen, looks = (floating, _verdict(space, floating, judge)), 1
    timed, verdict = seen
    promise = _promise(space, last, timed, verdict, looks, notes, failed)
    promise.reason = _reason(last, first or last, timed, goal)
    if last.estimated:
        promise.reason += "; times are estimated, not measured"
    return Proof(timed.whole, promise, last)


def too_much(timed: Timed, goal: Goal) -> bool:
    """Whether a model is larger or takes longer than is allowed."""
    return bool(
        (goal.max_bytes is not None and timed.bytes > goal.max_bytes)
        or (goal.max_ms is not None and timed.p50_ms > goal.max_ms)
    )


def rank(timed: Sequence[Timed], goal: Goal) -> list[Timed]:
    """Order models by what is asked for; those slower than float come behind the float model."""
    floats = [each for each in timed if each.whole.name == "fp32"]
    limit = floats[0].relative * NO_GAIN if floats else float("inf")

    most = max((each.whole.loss for each in timed), default=0.0)

    def key(each: Timed) -> tuple[bool, bool, float]:
        slower = not each.whole.is_float and each.relative > limit
        aims = {"latency": each.relative, "size": each.bytes, "memory": each.memory}
        aim = float(aims[goal.optimize])
        if each.whole.is_mix and each.whole.loss < most:
            aim *= _NOISE
        return too_much(each, goal), slower and goal.optimize == "latency", aim

    ordered = sorted(timed, key=key)
    place = next((i for i, each in enumerate(ordered) if each.whole.name == "fp32"), len(ordered))
    # Behind the float model, which loses nothing, is nothing worth trying, bounds apart.
    return ordered[: place + 1]


def _least_loss_first(space: Workspace, ordered: list[Timed], notes: list[str]) -> list[Timed]:
    """Without a bound on the loss, of what keeps the other bounds what loses least comes first."""
    goal = space.goal
    fits = [each for each in ordered if not too_much(each, goal)]
    scored = [(each, _searched(space, each, notes)) for each in fits]
    found = sorted(
        ((verdict.bound, place) for place, (_, verdict) in enumerate(scored) if verdict is not None)
    )
    first = [fits[place] for _, place in found]
    return [*first, *(each for each in ordered if each not in first)]


def _searched(space: Workspace, timed: Timed, notes: list[str]) -> Verdict | None:
    """Score on the samples that are searched with; None, with a note, where it fails on them."""
    try:
        return space.verdict(timed.whole, timed.engine)
    except EngineError as error:
        notes.append(f"{timed.whole.name} fails on the samples searched with: {error}")
        return None


def _verdict(space: Workspace, timed: Timed, judge: Judge) -> Verdict:
    with space.times.open(timed.whole, timed.engine) as session:
        return judge.verdict(session, space.goal.max_drop)


def _promise(
    space: Workspace,
    last: Round,
    timed: Timed,
    verdict: Verdict,
    looks: int,
    notes: list[str],
    failed: Collection[str],
) -> Promise:
    goal = space.goal
    floats = [each for each in last.timed if _is_base(space, each, goal, failed)]
    best_float = min(floats, key=lambda each: each.relative)
    broken = broken_bounds(goal, timed, verdict)
    if verdict.few:
        line = (
            f"{verdict.samples} samples can't tell a drop of {goal.max_drop:g}: what it stays below, "
            f"{verdict.bound:.4g}, was taken for the drop; give more labelled samples"
        )
        notes = [*notes, line]
    if last.estimated:
        notes = [*notes, f"times are {last.estimated}"]
        if goal.max_ms is not None:
            notes.append(f"{goal.max_ms:g} ms were held to an estimate: measure on the device")
    return Promise(
        metric=space.metric.name,
        better=space.metric.better,
        max_drop=goal.max_drop,
        optimize=goal.optimize,
        max_bytes=goal.max_bytes,
        max_ms=goal.max_ms,
        holds=not broken,
        broken=broken,
        score=verdict.score,
        original=verdict.original,
        drop=verdict.drop,
        interval=(verdict.low, verdict.high),
        samples=verdict.samples,
        judged_by="upper bound" if verdict.few else "drop",
        bound=verdict.bound,
        looks=looks,
        engine=str(timed.engine),
        p50_ms=timed.p50_ms,
        float_engine=f"{best_float.engine.backend} {best_float.whole.name}",
        float_p50_ms=best_float.p50_ms,
        relative_time=timed.relative / best_float.relative,
        latency_estimated=bool(last.estimated),
        peak_bytes=timed.memory or None,
        float_peak_bytes=best_float.memory or None,
        notes=notes,
    )


def _is_base(space: Workspace, timed: Timed, goal: Goal, failed: Collection[str]) -> bool:
    """Whether a model is a float one that keeps the promise, as the float32 one does.

    What failed on the samples of the proof does not keep it, whatever it did on those searched with.
    """
    if timed.whole.name == "fp32":
        return True
    if not timed.whole.is_float or timed.whole.is_mix or timed.whole.name in failed:
        return False
    searched = _searched(space, timed, [])
    return searched is not None and searched.holds(goal.max_drop)


def broken_bounds(goal: Goal, timed: Timed, verdict: Verdict) -> list[str]:
    """Say what was asked for and does not hold, and what would."""
    broken = []
    name = timed.whole.name
    if not verdict.holds(goal.max_drop):
        broken.append(
            f"{name} loses {verdict.bound:.4g}, more than {goal.max_drop:g}: "
            f"what was asked for needs --max-drop {max(verdict.bound, 0.0):.4g}"
        )
    if goal.max_bytes is not None and timed.bytes > goal.max_bytes:
        broken.append(f"{name} has {timed.bytes} bytes, more than {goal.max_bytes}")
    if goal.max_ms is not None and timed.p50_ms > goal.max_ms:
        broken.append(f"{name} takes {timed.p50_ms:.3g} ms, more than {goal.max_ms:g} ms")
    return broken


def _what(whole: Whole) -> str:
    if whole.what:
        return whole.what
    return f"all of it that can be in {whole.precision}"


def _reason(last: Round, first: Round, timed: Timed, goal: Goal) -> str:
    if not timed.whole.is_float or timed.whole.is_mix:
        what = _what(timed.whole)
        return f"best for {goal.optimize} of what keeps the promise: {timed.whole.name}, {what}"
    for round_ in (last, first):
        integers = [each for each in round_.timed if not each.whole.is_float]
        mine = round_.of(timed.whole.name)
        if not integers or mine is None:
            continue
        fastest = min(integers, key=lambda each: each.relative)
        factor = fastest.relative / mine.relative
        if factor >= NO_GAIN and goal.optimize == "latency":
            return (
                f"{fastest.whole.name} takes {factor:.2f} times as long as {timed.whole.name} here: "
                "integers win nothing"
            )
    return "no model with integers that is faster keeps the promise"
