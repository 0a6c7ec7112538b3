"""Puts units, losses and times together into what the integer programme decides."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from qgraph.errors import UsageError
from qgraph.search.choice import Border, Option, Problem, weigh
from qgraph.search.costs import Costs
from qgraph.search.observed import Seen
from qgraph.search.sensitivity import Sensitivity
from qgraph.search.units import Link, Unit

FLOAT, CODES = "fp32", "int8"
# Gains on the whole model and those of its units differ by threads and caches, not by more.
_LEAST_SCALE, _MOST_SCALE = 0.2, 5.0

Forced = Sequence[tuple[str, str]]


def build_problem(
    units: Sequence[Unit],
    links: Sequence[Link],
    sensitivity: Sensitivity,
    costs: Costs,
    seen: Mapping[str, Seen],
    *,
    float_ms: float,
    integer_ms: float,
    float_bytes: int,
    forced: Forced = (),
) -> Problem:
    """Return the problem, with times such that both ends are what was measured of whole models.

    Args:
        units: The units.
        links: The values between them.
        sensitivity: What units lose.
        costs: What units take.
        seen: What values look like.
        float_ms: Latency of the model all in float, milliseconds.
        integer_ms: Latency with all units in integers.
        float_bytes: Size of the float model.
        forced: Patterns of names or operators and the precision that they get.
    """
    scale = _scale(units, links, costs, seen, float_ms - integer_ms)
    options = []
    for unit, cost in zip(units, costs.units, strict=True):
        loss = float(sensitivity.loss[unit.index])
        coded = cost.plain - scale * (cost.plain - cost.coded)
        both = [
            Option(FLOAT, False, 0.0, cost.plain, unit.float_bytes, _working(unit, seen, 4)),
            Option(CODES, True, loss, coded, unit.code_bytes, _working(unit, seen, 1)),
        ]
        options.append(_allowed(unit, both, forced))
    borders = [_border(units, link, costs, seen, scale, sensitivity) for link in links]
    rest = float_ms - sum(cost.plain for cost in costs.units)
    return Problem(options, borders, rest, float_bytes - sum(unit.float_bytes for unit in units))


def read_forced(lines: Sequence[str], units: Sequence[Unit]) -> list[tuple[str, str]]:
    """Read `PATTERN=PRECISION` lines.

    Raises:
        UsageError: One can't be read, or nothing fits its pattern.
    """
    found = []
    for line in lines:
        pattern, equals, precision = line.rpartition("=")
        if not equals or not pattern or precision not in (FLOAT, CODES):
            raise UsageError(
                f"can't read --assign {line!r}", fix=f"write PATTERN={CODES} or PATTERN={FLOAT}"
            )
        if not any(_fits(unit, pattern) for unit in units):
            raise UsageError(
                f"--assign {line!r} fits no node that can run in integers",
                fix="`qgraph explain` of an int8 artifact lists nodes and reasons",
            )
        found.append((pattern, precision))
    return found


def assigned(unit: Unit, forced: Forced) -> str | None:
    """Return the precision of the last pattern that fits a unit, or None."""
    wanted = [precision for pattern, precision in forced if _fits(unit, pattern)]
    return wanted[-1] if wanted else None


def _fits(unit: Unit, pattern: str) -> bool:
    return fnmatchcase(unit.name, pattern) or fnmatchcase(unit.node.op_type, pattern)


def _allowed(unit: Unit, options: list[Option], forced: Forced) -> list[Option]:
    """The options that the last pattern that fits leaves."""
    wanted = assigned(unit, forced)
    return options if wanted is None else [o for o in options if o.name == wanted]


def _scale(
    units: Sequence[Unit],
    links: Sequence[Link],
    costs: Costs,
    seen: Mapping[str, Seen],
    gain: float,
) -> float:
    options = [[Option("", True, 0.0, cost.coded)] for cost in costs.units]
    borders = [_border(units, link, costs, seen, 1.0) for link in links]
    coded = weigh(Problem(options, borders), (0,) * len(units)).time
    predicted = sum(cost.plain for cost in costs.units) - coded
    if gain <= 0 or predicted <= 0:
        return 1.0
    return min(max(gain / predicted, _LEAST_SCALE), _MOST_SCALE)


def _border(
    units: Sequence[Unit],
    link: Link,
    costs: Costs,
    seen: Mapping[str, Seen],
    scale: float,
    sensitivity: Sensitivity | None = None,
) -> Border:
    size = seen[link.value.name or ""].size
    lost = 0.0
    if sensitivity is not None and link.writer is not None:
        lost = float(sensitivity.written[link.writer])
    return Border(
        link.writer,
        link.readers,
        scale * costs.to_codes.of(size),
        scale * costs.to_floats.of(size),
        lost,
    )


def _working(unit: Unit, seen: Mapping[str, Seen], element: int) -> float:
    names = {value.name or "" for value in unit.reads.values()} | {unit.result.name or ""}
    return float(sum(seen[name].size * element for name in names if name in seen))
