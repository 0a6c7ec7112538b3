"""The integer programme, against trying every assignment."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.search.choice import Border, End, Option, Problem, choose, weigh

_NUMBER = st.floats(0, 10).map(lambda x: round(x, 2))
_KEYS = {"latency": "time", "size": "bytes", "memory": "memory", "loss": "loss"}


FORMATS = ("fp32", "fp16", "int8")
_PAIRS = st.sampled_from(list(itertools.permutations(FORMATS, 2)))


def option(name, format, loss=0.0, time=0.0, bytes=0.0, working=0.0):
    """An option that reads, writes and computes in one format."""
    return Option(name, loss, time, bytes, working, reads=format, writes=format, rest=format)


def border(writer, readers, to_codes, to_floats, loss=0.0):
    """A value between units in float or int8."""
    times = {("fp32", "int8"): to_codes, ("int8", "fp32"): to_floats}
    ends = tuple(End(reader, "reads") for reader in readers)
    return Border(End(writer, "writes"), ends, times, {("int8", "fp32"): loss})


@st.composite
def problems(draw):
    count = draw(st.integers(1, 5))
    form = st.sampled_from(FORMATS)
    one = st.builds(
        Option, st.just("x"), _NUMBER, _NUMBER, _NUMBER, _NUMBER, reads=form, writes=form, rest=form
    )
    units = [draw(st.lists(one, min_size=1, max_size=3)) for _ in range(count)]
    index = st.one_of(st.none(), st.integers(0, count - 1))
    end = st.builds(End, index, st.sampled_from(["reads", "writes", "rest"]))
    prices = st.dictionaries(_PAIRS, _NUMBER, max_size=4)
    value = st.builds(Border, end, st.lists(end, min_size=1, max_size=3).map(tuple), prices, prices)
    return Problem(units, draw(st.lists(value, max_size=4)), draw(_NUMBER), draw(_NUMBER))


@given(problems(), st.sampled_from(list(_KEYS)), *[st.one_of(st.just(np.inf), _NUMBER)] * 3)
@settings(max_examples=150, deadline=None)
def test_no_assignment_is_better(problem, objective, max_loss, max_time, max_bytes):
    every = itertools.product(*(range(len(unit)) for unit in problem.units))
    costs = [weigh(problem, options) for options in every]
    slack = 1e-6
    fits = [
        c
        for c in costs
        if c.loss <= max_loss + slack
        and c.time <= max_time + slack
        and c.bytes <= max_bytes + slack
    ]
    found = choose(problem, objective, max_loss=max_loss, max_time=max_time, max_bytes=max_bytes)
    if found is None:
        assert not [c for c in fits if c.loss < max_loss and c.time < max_time]
        return
    best = min(getattr(c, _KEYS[objective]) for c in fits)
    assert getattr(found, _KEYS[objective]) <= best + 1e-3
    assert found.loss <= max_loss + 1e-4 and found.time <= max_time + 1e-4


def test_a_float_unit_between_integer_ones_pays_for_its_borders():
    units = [[option("float", "fp32", 0, 3), option("int8", "int8", loss, 2)] for loss in (1, 5, 1)]
    borders = [border(0, (1,), 2, 2), border(1, (2,), 2, 2)]
    problem = Problem(units, borders)
    assert choose(problem, "latency").options == (1, 1, 1)
    # With one of them in float the border takes what the other two win: nothing is won, so the
    # assignment with the least loss is taken.
    assert weigh(problem, (1, 1, 0)).time == weigh(problem, (0, 0, 0)).time == 9
    assert choose(problem, "latency", max_loss=6).options == (0, 0, 0)
    assert weigh(problem, (1, 0, 1)).time == 2 + 3 + 2 + 2 + 2
    assert choose(problem, "latency", max_loss=2).options == (0, 0, 0)


def test_equal_times_are_decided_by_the_loss():
    units = [[option("float", "fp32", 0, 1), option("int8", "int8", 0.1, 1)]]
    assert choose(Problem(units), "latency").options == (0,)


def test_bounds_that_nothing_meets():
    problem = Problem([[option("float", "fp32", 0, 5, 10), option("int8", "int8", 3, 2, 4)]])
    assert choose(problem, "latency", max_loss=1, max_time=4) is None
    assert choose(problem, "loss", max_bytes=5).options == (1,)
    assert choose(Problem([], time=3), "latency", max_time=2) is None


@pytest.mark.parametrize("count", [800])
def test_hundreds_of_units_are_solved(count):
    rng = np.random.default_rng(0)
    units = [
        [option("float", "fp32", 0, 2), option("int8", "int8", loss, time)]
        for loss, time in zip(rng.exponential(1, count), rng.uniform(0.5, 2.2, count), strict=True)
    ]
    borders = [border(i, (i + 1,), 0.3, 0.3) for i in range(count - 1)]
    problem = Problem(units, borders)
    every = sum(unit[1].loss for unit in units)
    found = choose(problem, "latency", max_loss=every / 4)
    assert found is not None and found.loss <= every / 4 * (1 + 1e-6)
    assert found.time < weigh(problem, (0,) * count).time


def test_the_solver_prints_nothing(capfd):
    """What it printed of problems like this one would stand in the output of --json."""
    rng = np.random.default_rng(0)
    units = []
    for _ in range(210):
        rows, columns = [(576, 576), (576, 192), (576, 1536), (1536, 576)][rng.integers(4)]
        base = np.exp(rng.normal(-7, 1.5))
        options = [("f", 4, 0), ("8", 1.07, 2e-3), ("32", 0.64, 0.6), ("64", 0.57, 0.8)]
        units.append(
            [
                Option(name, base * loss, rng.random() * 0.01, bits * rows * columns)
                for name, bits, loss in [*options, ("128", 0.6 if rows == 576 else 0.54, 1)]
            ]
        )
    problem = Problem(units, (), 0.0, 1e6)
    most = choose(problem, "size").loss
    for share in (0.3, 0.15, 0.1, 0.01):
        found = choose(problem, "size", max_loss=share * most)
        assert found.loss <= share * most * (1 + 1e-9)
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""
