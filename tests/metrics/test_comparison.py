import numpy as np
import pytest

from qgraph.errors import DataError
from qgraph.metrics import metric
from qgraph.metrics.comparison import compare, estimate

TOP1 = metric("top1")


def hits(*values: int) -> np.ndarray:
    return np.stack([np.array(values, float), np.ones(len(values))], axis=1)


def test_a_change_is_judged_on_the_same_draws() -> None:
    rng = np.random.default_rng(0)
    theirs = hits(*rng.integers(0, 2, 200))
    ours = theirs.copy()
    ours[:4, 0] = 1 - ours[:4, 0]
    found = compare(TOP1, ours, theirs)
    assert found.ours == estimate(TOP1, ours) and found.theirs == estimate(TOP1, theirs)
    assert found.change.value == found.ours.value - found.theirs.value
    low, high = found.change.interval
    # Four of 200 changed: the change is known to about 2 sqrt(4) / 200, the scores to .07.
    assert low <= found.change.value <= high and 0 < high - low < 0.05
    assert np.ptp(found.ours.interval) > 0.1
    swapped = compare(TOP1, theirs, ours).change
    assert swapped.interval == pytest.approx((-high, -low))


def test_the_same_model_has_no_change() -> None:
    rows = hits(1, 0, 1, 1)
    found = compare(TOP1, rows, rows)
    assert (found.change.value, found.change.interval) == (0, (0, 0))
    assert found.ours == found.theirs


def test_what_has_no_score() -> None:
    with pytest.raises(DataError, match="these 2 samples have no perplexity"):
        estimate(metric("perplexity"), np.zeros((2, 2)))
    with pytest.raises(DataError, match="2 numbers of one model and 3 of the other"):
        compare(TOP1, hits(1, 0), hits(1, 0, 0))
