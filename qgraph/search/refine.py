"""Chooses, verifies, corrects what the choice was based on, and chooses again.

Losses of units are error energies; how much score an error costs is not known before a model with
it is measured. So the bound on the energy is what is looked for: the first choice has none, and each
verification moves it, until the drop allowed lies between two bounds that are close.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from qgraph.search.choice import Choice, Problem, choose
from qgraph.search.goal import Goal
from qgraph.search.judge import Verdict

# Bounds that differ by less give models that differ by little.
_CLOSE = 1.25
_MOST = 8


@dataclass(frozen=True)
class Point:
    """A choice that was measured.

    Attributes:
        choice: Which option each unit has, and what was predicted.
        verdict: What the model lost on the part of the data that is searched with.
    """

    choice: Choice
    verdict: Verdict

    @property
    def coded(self) -> int:
        """Number of units not in their first option, which is float."""
        return sum(index > 0 for index in self.choice.options)


@dataclass(frozen=True)
class Refined:
    """What came of it.

    Attributes:
        points: Everything that was measured, in order.
        best: The best that keeps the promise; None where none does.
        nearest: Where none does, the one that loses least within the other bounds.
    """

    points: tuple[Point, ...]
    best: Point | None
    nearest: Point | None


def refine(
    problem: Problem, goal: Goal, verify: Callable[[Choice], Verdict], most: int = _MOST
) -> Refined:
    """Find the best choice whose measured drop is allowed.

    Args:
        problem: Units with options, the first of each in float.
        goal: Promise and aim.
        verify: Measures a choice.
        most: The most verifications.
    """
    points: dict[tuple[int, ...], Point] = {}

    def measured(choice: Choice) -> Point:
        if choice.options not in points:
            points[choice.options] = Point(choice, verify(choice))
        return points[choice.options]

    bounds = {"max_time": or_inf(goal.max_ms), "max_bytes": or_inf(goal.max_bytes)}
    aim = goal.optimize if goal.max_drop is not None else "loss"
    low, high, best = 0.0, math.inf, None
    while len(points) < most:
        bound = high if math.isinf(high) else _between(low, high, points.values(), goal.max_drop)
        choice = choose(problem, aim, max_loss=bound, **bounds)
        if choice is None:
            if low or math.isinf(high):
                break
            low = bound  # less loss can't be had within the other bounds
            continue
        known = choice.options in points
        point = measured(choice)
        if point.verdict.holds(goal.max_drop):
            best, low = point, max(bound if math.isfinite(bound) else 0.0, choice.loss)
            if math.isinf(high) or known:
                break
        else:
            high = min(choice.loss, bound)
        if high <= low * _CLOSE or not high or not any(choice.options):
            break
    nearest = None
    if best is None:
        safe = choose(problem, "loss", **bounds)
        if safe is not None:
            point = measured(safe)
            best = point if point.verdict.holds(goal.max_drop) else None
        nearest = min(points.values(), key=lambda p: p.verdict.bound, default=None)
    return Refined(tuple(points.values()), best, nearest)


def front(problem: Problem, goal: Goal, count: int) -> list[Choice]:
    """Return choices from all in float to the best without a bound on the loss, all different.

    Args:
        problem: What is decided.
        goal: What is made small; its bounds do not count.
        count: How many are wanted; there are fewer where there are no more.
    """
    first = choose(problem, "loss")
    last = choose(problem, goal.optimize)
    assert first is not None and last is not None
    found = {first.options: first, last.options: last}
    losses = sorted(option.loss for unit in problem.units for option in unit if option.loss > 0)
    if not losses or last.loss <= 0:
        return list(found.values())
    for tries in (count, 4 * count):
        for bound in np.geomspace(min(losses[0], last.loss), last.loss, tries):
            choice = choose(problem, goal.optimize, max_loss=float(bound))
            if choice is not None:
                found.setdefault(choice.options, choice)
        if len(found) >= count:
            break
    ordered = sorted(found.values(), key=lambda choice: choice.loss)
    if len(ordered) > count:
        picked = sorted({round(i) for i in np.linspace(0, len(ordered) - 1, count)})
        ordered = [ordered[i] for i in picked]
    return ordered


def _between(low: float, high: float, points: Iterable[Point], allowed: float | None) -> float:
    """The next bound to try: between the two, or where the drops so far say it lies."""
    if low:
        return math.sqrt(low * high)
    drops = [(p.choice.loss, p.verdict.bound) for p in points]
    drops = sorted((x, y) for x, y in drops if x > 0 and 0 < y < math.inf)
    if not drops or not allowed:
        return high / 3
    loss, drop = drops[0]
    power = 1.0  # of the loss, that the drop follows
    if len(drops) > 1 and drops[1][1] > drop:
        power = math.log(drops[1][1] / drop) / math.log(drops[1][0] / loss)
    guess = loss * (allowed / drop) ** (1 / min(max(power, 0.3), 3.0))
    return float(min(max(guess, high / 100), high / 1.5))


def or_inf(value: float | None) -> float:
    """Return a bound, infinite where there is none."""
    return math.inf if value is None else float(value)
