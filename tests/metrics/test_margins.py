import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qgraph.metrics import margins as module
from qgraph.metrics import metric
from qgraph.metrics.margins import likely_bound, margins, turned
from qgraph.metrics.topk import ranks

SMALL = st.integers(-3, 3).map(float)


def test_answers_turn_both_ways():
    theirs = np.array([2, 2, -2, -2, 1, np.inf, 0])
    moves = np.array([-3, 3, 3, -3, -1, -9, 1.0])
    assert turned(theirs, moves).tolist() == [1, 0, -1, 0, 1, 0, -1]


@given(st.integers(1, 12).flatmap(lambda n: arrays(np.float64, (2, n), elements=SMALL)))
def test_a_model_that_moves_nothing_loses_nothing(pair):
    assert likely_bound(pair[0], pair[0], pair[1]) == 0


@given(st.lists(st.permutations(range(6)), min_size=3, max_size=3), st.integers(1, 7))
def test_answers_are_right_where_the_margin_is_above_0(orders, best):
    scores, classes = np.array(orders, np.float32), np.array([0, 1, 5])
    right = ranks(scores, classes) < best
    assert (margins(scores, classes, best) > 0).tolist() == right.tolist()


def test_probabilities_have_the_margins_of_their_logits():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((50, 7)) * 5
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    classes = rng.integers(0, 7, 50)
    assert margins(shares.astype(np.float32), classes) == pytest.approx(
        margins(logits, classes), abs=1e-3
    )


def test_a_single_class_can_not_turn():
    ahead = margins(np.ones((3, 1)), np.zeros(3, np.int64))
    assert np.isinf(ahead).all() and likely_bound(ahead, ahead) == 0


@pytest.mark.parametrize("further", [0, 444])
def test_as_many_further_samples_seldom_show_more(further, monkeypatch):
    """What others of a large population show lies below the bound about as often as it says."""
    monkeypatch.setattr(module, "RESAMPLES", 300)
    rng = np.random.default_rng(0)
    theirs = rng.normal(2, 2, 200_000)
    ours = theirs + rng.normal(-0.05, 0.25, len(theirs))
    lost = (theirs > 0).astype(float) - (ours > 0)
    below, by_counting = 0, 0
    for _ in range(300):
        drawn, again = rng.integers(0, len(theirs), (2, 222))
        others = theirs[rng.integers(0, len(theirs), further)]
        shown = lost[again].mean() - 1e-12
        below += shown <= likely_bound(theirs[drawn], ours[drawn], others)
        counted = lost[drawn][rng.integers(0, 222, (300, 222))].mean(axis=1)
        by_counting += shown <= np.quantile(counted, 0.95)
    assert 0.93 <= below / 300 <= 0.99
    assert by_counting < below - 15, "counting was to miss more often"


def test_metrics_that_say_they_have_margins_give_them():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((6, 9)).astype(np.float32)
    labels = {"label": rng.integers(0, 9, 6)}
    for name in ("top1", "top5"):
        rows = metric(name).contributions({"logits": logits}, labels)
        assert metric(name).margins and ((rows[:, 2] > 0) == rows[:, 0]).all()
    rows = metric("agreement").contributions({"logits": -logits}, {"logits": logits})
    assert metric("agreement").margins and (rows[:, 2] < 0).all() and not rows[:, 0].any()
    assert not metric("cer").margins
