"""Puts units, losses and times together into what the integer programme decides."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from qgraph.errors import UsageError
from qgraph.search.choice import Border, Formats, Option, Problem, weigh
from qgraph.search.costs import Costs
from qgraph.search.observed import Seen
from qgraph.search.offered import Offered
from qgraph.search.probes import READ, WIDE_WRITTEN, WRITTEN
from qgraph.search.sensitivity import Sensitivity
from qgraph.search.units import Link, Unit
from qgraph.search.ways import CODES, DYNAMIC, FEW_BITS, FLOAT, FLOAT8, HALVES, PLAIN, WIDE, Way

# Gains on the whole model and those of its units differ by threads and caches, not by more.
_LEAST_SCALE, _MOST_SCALE = 0.2, 5.0
_LEAST_TIME = 0.05
_BORDER = "conversions"
_ASSIGNED = (FLOAT, *HALVES, FLOAT8, CODES, WIDE, DYNAMIC, *FEW_BITS)
_BYTES = {FLOAT: 4, **dict.fromkeys((*HALVES, WIDE), 2), CODES: 1}

Forced = Sequence[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known of the units.

    Attributes:
        units: The units.
        links: The values between them.
        ways: For each unit, its ways, float first.
        offered: What they were offered.
        sensitivity: What they lose.
        costs: What they take.
        seen: What values look like.
        whole_ms: By precision, latency of whole models, milliseconds; `fp32` is the float one.
        float_bytes: Size of the float model.
    """

    units: Sequence[Unit]
    links: Sequence[Link]
    ways: Sequence[Sequence[Way]]
    offered: Offered
    sensitivity: Sensitivity
    costs: Costs
    seen: Mapping[str, Seen]
    whole_ms: Mapping[str, float]
    float_bytes: int


def build_problem(facts: Facts) -> tuple[Problem, list[list[Way]]]:
    """Return the problem, with the way of every option.

    Times are such that models all in float, and all in one of the other precisions, take what was
    measured of them.
    """
    scales = _scales(facts)
    kept = [_kept(facts, unit, ways) for unit, ways in zip(facts.units, facts.ways, strict=True)]
    options = [
        [_option(facts, unit, each, scales) for each in ways]
        for unit, ways in zip(facts.units, kept, strict=True)
    ]
    borders = [_border(facts, link, scales) for link in facts.links]
    plain = sum(cost.of(PLAIN) or 0.0 for cost in facts.costs.units)
    rest = facts.whole_ms[FLOAT] - plain
    size = facts.float_bytes - sum(unit.float_bytes for unit in facts.units)
    return Problem(options, borders, rest, size), kept


# -- what the user decided -------------------------------------------------------------------------


def read_forced(lines: Sequence[str], units: Sequence[Unit]) -> list[tuple[str, str]]:
    """Read `PATTERN=PRECISION` lines.

    Raises:
        UsageError: One can't be read, or nothing fits its pattern.
    """
    found = []
    for line in lines:
        pattern, equals, precision = line.rpartition("=")
        unit, plus, rest = precision.partition("+")
        kind, colon, group = unit.partition(":")
        grouped = not colon or (kind in FEW_BITS and group.isascii() and group.isdigit())
        known = kind in _ASSIGNED and (not plus or rest in HALVES)
        if not equals or not pattern or not known or not grouped:
            shown = ", ".join(f"PATTERN={each}" for each in (FLOAT, CODES, DYNAMIC, "fp16", "fp8"))
            raise UsageError(
                f"can't read --assign {line!r}",
                fix=f"write {shown}, PATTERN=int8-weights, PATTERN=int4 or PATTERN=int4:32",
            )
        if not any(_fits(unit, pattern) for unit in units):
            raise UsageError(
                f"--assign {line!r} fits no node that can run in integers or is a product",
                fix="`qgraph explain` of an int8 artifact lists nodes and reasons",
            )
        found.append((pattern, precision))
    return found


def assigned(unit: Unit, forced: Forced) -> str | None:
    """Return the precision of the last pattern that fits a unit, or None."""
    wanted = [precision for pattern, precision in forced if _fits(unit, pattern)]
    return wanted[-1] if wanted else None


def allowed(
    units: Sequence[Unit], ways: Sequence[Sequence[Way]], forced: Forced
) -> list[list[Way]]:
    """Return what lines leave of each unit's ways; units that can't be what theirs says stay free.

    Raises:
        UsageError: No unit that a pattern fits can be what its line says.
    """
    for pattern, wanted in forced:
        fitting = [own for unit, own in zip(units, ways, strict=True) if _fits(unit, pattern)]
        able = [way for own in fitting for way in own]
        if fitting and not any(way.fits(wanted) for way in able):
            raise UsageError(
                f"--assign '{pattern}={wanted}': not to be had on this target",
                fix=f"choose among {', '.join(dict.fromkeys(way.unit for way in able))}",
            )
    found = []
    for unit, own in zip(units, ways, strict=True):
        line = assigned(unit, forced)
        found.append([way for way in own if line is None or way.fits(line)] or list(own))
    return found


def _fits(unit: Unit, pattern: str) -> bool:
    return fnmatchcase(unit.name, pattern) or fnmatchcase(unit.node.op_type, pattern)


# -- options ---------------------------------------------------------------------------------------


def _kept(facts: Facts, unit: Unit, ways: Sequence[Way]) -> list[Way]:
    """The ways that the engine runs and that leave something of the outputs; at least one."""
    cost = facts.costs.units[unit.index]
    able = [
        way for way in ways if cost.of(way) is not None and math.isfinite(_loss(facts, unit, way))
    ]
    return able or list(ways[:1])


def _option(facts: Facts, unit: Unit, way: Way, scales: Mapping[str, float]) -> Option:
    loss = _loss(facts, unit, way)
    return replace(
        _formats(unit, way),
        loss=loss if math.isfinite(loss) else 1.0,
        time=_time(facts, unit, way, scales),
        bytes=_bytes(facts, unit, way),
        working=_working(facts, unit, way),
    )


def _loss(facts: Facts, unit: Unit, way: Way) -> float:
    """What a way loses; an error of the unit and one of what follows it add up."""
    kinds = {READ if way.unit == CODES else way.unit, way.rest} - {FLOAT}
    losses = [facts.sensitivity.of(kind, unit.index) for kind in kinds]
    return sum(math.inf if each is None else each for each in losses)


def _time(facts: Facts, unit: Unit, way: Way, scales: Mapping[str, float]) -> float:
    cost = facts.costs.units[unit.index]
    alone = cost.coded if way.unit == CODES else cost.alone.get(way.unit, cost.plain)
    won = _scale_of(scales, way.unit) * (cost.plain - alone)
    won += _scale_of(scales, way.rest) * cost.won_behind(way)
    # Scaled gains of single units may be more than all that there is.
    plain = cost.plain + cost.tail.get(FLOAT, 0.0)
    return max(plain - won, _LEAST_TIME * plain)


def _bytes(facts: Facts, unit: Unit, way: Way) -> float:
    if way.unit in (CODES, WIDE):
        return unit.code_bytes
    if way.unit in HALVES:
        return unit.float_bytes / 2
    size = 4 if way.rest == FLOAT else 2
    layer = facts.offered.layers.get(unit.name)
    if way.unit == DYNAMIC:
        return unit.code_bytes if unit.reads else unit.float_bytes / 4
    if way.unit == FLOAT8 or way.weight is None or layer is None:
        return unit.float_bytes / 4 if way.unit == FLOAT8 else unit.float_bytes
    (bits, group), (rows, columns) = way.weight, layer.shape
    blocks = -(-rows // group) if group else 1
    held = (blocks * group if group else rows) * columns * bits / 8
    zeros = 0 if facts.offered.rules.symmetric else blocks * columns * bits / 8
    return held + blocks * columns * size + zeros + unit.float_bytes - 4 * rows * columns


def _working(facts: Facts, unit: Unit, way: Way) -> float:
    element = _BYTES.get(way.unit, _BYTES[way.rest])
    read = [value for value in unit.node.inputs if value is not None]
    names = {value.name or "" for value in (*read, *unit.reads.values(), unit.result)}
    sizes = [facts.seen[name].size for name in names if name in facts.seen]
    return float(element * sum(sizes))


def _border(facts: Facts, link: Link, scales: Mapping[str, float]) -> Border:
    look = facts.seen.get(link.value.name or "")
    size = 0 if look is None else look.size
    half, costs = facts.offered.half, facts.costs
    times: dict[tuple[str, str], float] = {}
    losses: dict[tuple[str, str], float] = {}
    floats = [FLOAT, half] if half else [FLOAT]
    lost = 0.0
    if link.writer.part == "writes" and link.writer.unit is not None:
        lost = facts.sensitivity.of(WRITTEN, link.writer.unit) or 0.0
    codes = scales.get(_BORDER, 1.0)
    for each in floats:
        times[each, CODES] = codes * costs.to_codes.of(size)
        times[CODES, each] = codes * costs.to_floats.of(size)
        losses[CODES, each] = lost
    if facts.offered.wide:
        times |= _wide_times(times)
        written = 0.0
        if link.writer.part == "writes" and link.writer.unit is not None:
            written = facts.sensitivity.of(WIDE_WRITTEN, link.writer.unit) or 0.0
        losses |= {(CODES, WIDE): lost, **{(WIDE, each): written for each in floats}}
    if half:
        price = _scale_of(scales, half) * costs.cast.of(size)
        times[FLOAT, half] = times[half, FLOAT] = price
    return Border(link.writer, link.readers, times, losses)


def _wide_times(times: Mapping[Formats, float]) -> dict[Formats, float]:
    """Conversions to and from codes of 16 bits, which take what those of 8 do; between both one of each."""
    to_codes, to_floats = times[FLOAT, CODES], times[CODES, FLOAT]
    both = to_codes + to_floats
    found = {(FLOAT, WIDE): to_codes, (WIDE, FLOAT): to_floats}
    return found | {(CODES, WIDE): both, (WIDE, CODES): both}


# -- times of units, and of whole models -----------------------------------------------------------


def _scale_of(scales: Mapping[str, float], kind: str) -> float:
    return scales.get(kind.partition(":")[0], 1.0)


def _scales(facts: Facts) -> dict[str, float]:
    """By what the gains of units must be multiplied, so that whole models take what they were measured to.

    Floats in half come first: models in other precisions have their floats in it. Under `_BORDER` stands the
    factor of conversions to codes and back.
    """
    half = facts.offered.half
    scales: dict[str, float] = {}
    for kind in dict.fromkeys((*([half] if half else []), CODES, WIDE, DYNAMIC, FLOAT8, *FEW_BITS)):
        if kind in facts.whole_ms:
            scales |= _scale(facts, kind, scales)
    return scales


def _scale(facts: Facts, kind: str, known: Mapping[str, float]) -> dict[str, float]:
    """The factors of one precision, from the whole model in it."""
    wholly = [
        next((way for way in reversed(ways) if way.unit.partition(":")[0] == kind), ways[0])
        for ways in facts.ways
    ]
    if kind == CODES:  # all in integers, the rest in float
        wholly = [Way(CODES) if way.unit == CODES else way for way in wholly]
    pairs = list(zip(facts.units, wholly, strict=True))
    times = [_time(facts, unit, way, known) for unit, way in pairs]
    options = [[_formats(unit, way)] for unit, way in pairs]
    borders = [_border(facts, link, known) for link in facts.links]
    converting = weigh(Problem(options, borders), (0,) * len(options)).time
    costs = [facts.costs.units[unit.index] for unit in facts.units]
    plain = sum(cost.plain + cost.tail.get(FLOAT, 0.0) for cost in costs)
    # What the floats around win was settled before.
    around = 0.0
    if kind not in (CODES, *HALVES):
        around = sum(
            _scale_of(known, w.rest) * c.won_behind(w) for c, w in zip(costs, wholly, strict=True)
        )
    won = facts.whole_ms[FLOAT] - facts.whole_ms[kind] - around
    alone = plain - sum(times) - around
    if won <= 0:
        return {kind: 1.0}
    if alone <= 0:
        return {kind: 1.0, _BORDER: 0.0} if kind == CODES else {kind: 1.0}
    if alone > converting:
        both = min(max(won / (alone - converting), _LEAST_SCALE), _MOST_SCALE)
        return {kind: both, _BORDER: both} if kind == CODES else {kind: both}
    # Conversions seem to cost more than the units win, and do not: engines run them in other kernels.
    scale = min(max(won / alone, _LEAST_SCALE), 1.0)
    return {kind: scale, _BORDER: max(0.0, (scale * alone - won) / converting)}


def _formats(unit: Unit, way: Way) -> Option:
    """What a unit reads and writes; nothing else of it."""
    codes = way.unit if way.unit in (CODES, WIDE) else way.rest
    writes = codes if unit.writes is not None else way.rest
    return Option(way.name, reads=codes, writes=writes, rest=way.rest)
