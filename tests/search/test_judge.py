"""Whether a drop is too much, by the numbers alone, and how a choice is corrected."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qgraph.errors import UsageError
from qgraph.metrics import metric
from qgraph.search.choice import Option, Problem
from qgraph.search.costs import Engine
from qgraph.search.goal import Goal, make_goal, read_bytes, read_drop, read_milliseconds
from qgraph.search.judge import Verdict, judged
from qgraph.search.proof import prove
from qgraph.search.record import effort
from qgraph.search.refine import front, refine
from qgraph.search.whole import Round, Timed, Whole

TOP1, CER = metric("top1"), metric("cer")


def right(count, wrong, margin=1.0):
    rows = np.ones((count, 3))
    rows[:, 2] = margin
    rows[list(wrong)] *= [0, 1, -1]
    return rows


def test_a_drop_is_positive_where_the_model_is_worse():
    found = judged(TOP1, right(2000, range(20)), right(2000, range(10)), 0.005)
    assert found.drop == pytest.approx(0.005) and found.holds(0.005) and not found.holds(0.004)
    assert found.low < found.drop < found.high and not found.few
    edits = np.stack([np.full(400, 0.2), np.full(400, 10.0)], axis=1)
    found = judged(CER, edits * [2, 1], edits, 0.01)
    assert found.drop == pytest.approx(0.02) and not found.holds(0.01)


def test_few_samples_are_judged_by_the_upper_bound():
    # One lost, one won: no drop was seen, but 100 samples can't show that there is none.
    ours, theirs = right(100, [3]), right(100, [7])
    found = judged(TOP1, ours, theirs, 0.005)
    assert found.drop == 0 and found.few and found.upper > 0.005 and not found.holds(0.005)
    assert found.bound == found.upper
    # Of many samples the same share counts as seen.
    found = judged(TOP1, right(4000, range(40)), right(4000, range(40, 80)), 0.005)
    assert found.drop == 0 and not found.few and found.holds(0.005)


def test_of_scores_without_margins_the_end_of_the_interval_counts():
    edits = np.stack([np.zeros(100), np.full(100, 10.0)], axis=1)
    more = edits.copy()
    more[3, 0], edits[7, 0] = 1, 1
    found = judged(CER, more, edits, 0.001)
    assert found.drop == 0 and found.few and found.bound == found.high > 0.001


def test_answers_that_nearly_turned_count_though_none_did():
    near, theirs = right(200, []), right(200, [])
    # One in ten moved by half; one in twenty is that near to being wrong, and none is both.
    near[::10, 2] -= 0.5
    near[1::20, 2], theirs[1::20, 2] = 0.4, 0.4
    found = judged(TOP1, near, theirs, 0.001)
    assert found.drop == 0 and found.high == 0
    assert 0.005 < found.bound < 0.02 and not found.holds(0.001)


def test_no_error_in_few_samples_is_no_certainty():
    found = judged(TOP1, right(100, []), right(100, []), 0.005)
    assert found.few and found.holds(0.005)
    assert not judged(TOP1, right(100, []), right(100, []), 0.05).few


@pytest.mark.parametrize(
    ("text", "drop"), [("0.5%", 0.005), ("0.005", 0.005), (0.25, 0.25), ("0", 0), (" 3 % ", 0.03)]
)
def test_drops(text, drop):
    assert read_drop(text) == pytest.approx(drop)


def test_sizes_and_times():
    assert read_bytes("10MB") == 10**7 and read_bytes("1.5 MiB") == 3 << 19
    assert read_milliseconds("4ms") == 4 and read_milliseconds("0.5s") == 500
    for wrong in ("-1%", "nan", "x", "inf"):
        with pytest.raises(UsageError, match="is no loss"):
            read_drop(wrong)
    with pytest.raises(UsageError, match="4ms"):
        read_milliseconds("4 moons")
    assert make_goal(None, "size", None, "4ms") == Goal(None, "size", None, 4.0)


# -- the loop --------------------------------------------------------------------------------------


def problem(losses, gain=1.0):
    units = [[Option("fp32", 0, 2), Option("int8", x, 2 - gain)] for x in losses]
    return Problem(units)


def verify_with(law, calls):
    """A model whose drop follows its loss by a law that the search does not know."""

    def verify(choice):
        calls.append(choice)
        drop = law(choice.loss)
        return Verdict(1 - drop, 1, drop, drop, drop, 1000)

    return verify


@pytest.mark.parametrize("law", [lambda x: x, lambda x: 0.01 * x, np.sqrt, lambda x: x**2 / 50])
def test_the_bound_is_found_whatever_the_loss_costs(law):
    losses = np.geomspace(1e-4, 1, 40)
    calls = []
    goal = Goal(0.02)
    found = refine(problem(losses), goal, verify_with(law, calls))
    best = found.best
    assert best.verdict.holds(0.02) and len(calls) <= 8
    # No choice with twice the loss would have kept the promise, or everything is chosen.
    assert law(best.choice.loss * 2.5) > 0.02 or best.coded == 40


def test_one_ruinous_unit_alone_stays_in_float():
    losses = [1e-4] * 10 + [5.0] + [1e-4] * 10
    found = refine(problem(losses), Goal(0.005), verify_with(lambda x: x, []))
    assert [i for i, option in enumerate(found.best.choice.options) if not option] == [10]


def test_mixes_between_all_in_float_and_what_fails_are_tried():
    """A guess may fall below every loss; the model all in float that comes of it ends nothing."""
    losses = [0.9] * 10 + [1000.0]
    calls = []
    law = lambda x: 0.0 if x < 6 else (0.006 if x < 100 else 0.9)
    found = refine(problem(losses), Goal(0.005), verify_with(law, calls))
    assert found.best.coded == 6 and len(calls) <= 8


def test_impossible_bounds_give_the_nearest():
    goal = Goal(0.001, "latency", max_ms=30.0)  # half of the units at least
    found = refine(problem([0.1] * 20), goal, verify_with(lambda x: x, []))
    assert found.best is None and found.nearest.coded == 10
    assert found.nearest.verdict.drop == pytest.approx(1.0)


def test_without_a_drop_the_loss_is_made_small():
    found = refine(problem([1, 2, 3, 4]), Goal(None, max_ms=6.0), verify_with(lambda x: x, []))
    assert found.best.choice.options == (1, 1, 0, 0)


def test_fronts_have_as_many_points_as_are_wanted():
    losses = np.geomspace(1e-4, 1, 30)
    points = front(problem(losses), Goal(0.01), 10)
    assert len(points) == 10
    assert points[0].loss == 0 and points[-1].options == (1,) * 30
    times = [point.time for point in points]
    assert times == sorted(times, reverse=True)


def test_effort_counts_runs_over_all_the_data():
    """The original ran over one of three parts, however the data was given."""
    space = SimpleNamespace(seconds={"a": 4.0, "b": 2.0}, judge=SimpleNamespace(seconds=1.0))
    assert effort(space)["plain_evaluations"] == 2.0


KEPT = Verdict(0.9, 0.9, 0.0, 0.0, 0.0, 1000)
LOST = Verdict(0.8, 0.9, 0.1, 0.08, 0.12, 1000)


def proved(models, failing):
    """The promise of models with a time and a loss, of which some fail on the samples of the proof."""
    file, engine = Path("model.onnx"), Engine("onnxruntime-cpu")
    wholes = [
        (Whole(name, precision, file, floats=("a",) if loss else None, loss=loss), ms)
        for name, precision, ms, loss in models
    ]
    timed = tuple(Timed(whole, engine, ms, ms, ms, 100) for whole, ms in wholes)
    space = SimpleNamespace(
        goal=Goal(0.005),
        metric=TOP1,
        verdict=lambda whole, engine: KEPT,
        times=SimpleNamespace(open=lambda whole, engine: nullcontext(whole.name)),
    )
    judge = SimpleNamespace(verdict=lambda name, drop: LOST if name in failing else KEPT)
    return prove(space, Round(timed, ()), judge)


def test_a_float_model_that_fails_the_proof_is_nothing_to_compare_with():
    """Both keep the promise on the samples searched with; bf16, the faster, fails the proof."""
    models = [("bf16", "bf16", 1.0, 0.0), ("mix", "int8", 1.2, 0.1), ("fp32", "fp32", 2.0, 0.0)]
    promise = proved(models, {"bf16"}).promise
    assert promise.holds and promise.looks == 2
    assert promise.float_engine == "onnxruntime-cpu fp32" and promise.relative_time == 0.6


def test_the_safest_mix_is_tried_before_the_float_model():
    """Two thirds of the loss that failed is asked for, and no mix loses so little."""
    mixes = [("a", "int8", 1.0, 0.10), ("b", "int8", 1.1, 0.09), ("c", "int8", 1.2, 0.07)]
    found = proved([*mixes, ("fp32", "fp32", 2.0, 0.0)], {"a", "b"})
    assert found.whole.name == "c" and found.promise.looks == 2
    found = proved([*mixes, ("fp32", "fp32", 2.0, 0.0)], {"a", "b", "c"})
    assert found.whole.name == "fp32" and found.promise.looks == 3
