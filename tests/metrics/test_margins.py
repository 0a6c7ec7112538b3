import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qgraph.metrics import bootstrap as bootstrap_module
from qgraph.metrics import metric
from qgraph.metrics.margins import likely_bound, likely_drop, margins
from qgraph.metrics.topk import ranks

SMALL = st.integers(-3, 3).map(float)


@given(st.integers(1, 12).flatmap(lambda n: arrays(np.float64, (2, n), elements=SMALL)))
def test_every_margin_meets_every_movement(pair):
    theirs, ours = pair
    turned = [(before > 0) - int(before + move > 0) for before in theirs for move in ours - theirs]
    assert likely_drop(theirs, ours - theirs) == pytest.approx(np.mean(turned), abs=1e-12)


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
    assert np.isinf(ahead).all() and likely_drop(ahead, np.zeros(3)) == 0
    assert likely_bound(ahead, ahead) == 0


@pytest.mark.parametrize("further", [0, 444])
def test_it_covers_the_truth_and_is_nearer_than_counting(further, monkeypatch):
    """What a large population loses lies below the bound of few samples about as often as it says."""
    monkeypatch.setattr(bootstrap_module, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    theirs = rng.normal(2, 2, 200_000)
    ours = theirs + rng.normal(-0.05, 0.25, len(theirs))
    truth = (theirs > 0).mean() - (ours > 0).mean()
    below, estimates, counted = 0, [], []
    for _ in range(200):
        drawn = rng.integers(0, len(theirs), 222)
        others = theirs[rng.integers(0, len(theirs), further)]
        below += truth <= likely_bound(theirs[drawn], ours[drawn], others)
        every = np.concatenate([theirs[drawn], others])
        estimates.append(likely_drop(every, ours[drawn] - theirs[drawn]))
        counted.append((theirs[drawn] > 0).mean() - (ours[drawn] > 0).mean())
    assert 0.9 <= below / 200 <= 0.99
    assert np.mean(estimates) == pytest.approx(truth, abs=1e-3)
    assert np.std(estimates) < (0.4 if further else 0.6) * np.std(counted)


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
