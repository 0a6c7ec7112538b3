"""What is offered to the proof: mixes that keep the promise, and whole models worth the time."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from qgraph.runtime.backend import EngineOptions
from qgraph.search.candidates import may_win
from qgraph.search.choice import Choice, choose
from qgraph.search.found import Found
from qgraph.search.mixes import Mixes
from qgraph.search.ways import CODES, FLOAT
from qgraph.search.whole import Whole

# What loses so many times less than the best stands by for the proof.
_SAFER = (2, 4, 8)
# And what is predicted to take these shares of the time that is allowed.
_FASTER = (0.9, 0.8)


def mixes(space: Mixes, found: Found) -> list[Whole]:
    """Build the best mix and those that stand by, also with their float parts in bf16."""
    if found.refined is None:
        return []
    built = [space.mix(choice) for choice in _worth_proving(space, found)]
    return [*built, *_in_half(space, found, built)]


def finish(space: Mixes, found: Found) -> None:
    """Solve for the weights of the drafts that may turn out best."""
    refined, first = found.refined, found.first
    base = None if first is None else first.of("fp32")
    if first is None or base is None:
        return
    best = refined.best.choice if refined is not None and refined.best is not None else None
    drafts = [(whole, first.of(whole.name)) for whole in space.candidates.all() if whole.draft]
    space.candidates.finish(
        [
            draft
            for draft, timed in drafts
            if timed is not None and may_win(timed, space.goal, base, best)
        ]
    )


def _worth_proving(space: Mixes, found: Found) -> list[Choice]:
    """The best choice, and what stands by: such as lose less, or are predicted to be faster."""
    refined, goal = found.refined, space.goal
    assert refined is not None
    best = refined.best or refined.nearest
    if best is None:
        return []
    size = inf if goal.max_bytes is None else goal.max_bytes
    time = inf if goal.max_ms is None else goal.max_ms
    choices: list[Choice | None] = [best.choice]
    for divisor in _SAFER:
        bound = best.choice.loss / divisor
        choices.append(
            choose(found.problem, goal.optimize, max_loss=bound, max_time=time, max_bytes=size)
        )
    for share in _FASTER if goal.max_ms is not None else ():
        choices.append(choose(found.problem, "loss", max_time=share * time, max_bytes=size))
    return list({choice.options: choice for choice in choices if choice is not None}.values())


def _in_half(space: Mixes, found: Found, mixes: Sequence[Whole]) -> list[Whole]:
    """The same mixes with their float parts in bf16, where an engine computes in that."""
    if found.first is None or found.first.of("bf16") is None:
        return []
    options = EngineOptions(float_precision="bf16")
    return [
        replace(mix, name=f"{mix.name}, rest in bf16", options=options)
        for mix in mixes
        if mix.ways is not None and {each for _, each in mix.ways} == {FLOAT, CODES}
    ]
