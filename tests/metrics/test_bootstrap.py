import numpy as np
import pytest

from qgraph.metrics.bootstrap import bootstrap


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(3).standard_normal(400) * 2 + 7
    low, high = bootstrap(lambda drawn: [values[drawn].mean()], 400)[0]
    error = values.std() / 20  # of the mean
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_it_covers_the_truth_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgraph.metrics.bootstrap.RESAMPLES", 300)
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        values = rng.random(60)
        low, high = bootstrap(lambda drawn, x=values: [x[drawn].mean()], 60)[0]
        held += low <= 0.5 <= high
    assert 0.89 <= held / 200 <= 0.99


def test_statistics_of_one_draw_are_paired() -> None:
    rng = np.random.default_rng(1)
    ours = rng.standard_normal(100)
    theirs = ours + 0.01 * rng.standard_normal(100)

    def statistics(drawn: np.ndarray) -> list[float]:
        a, b = ours[drawn].mean(), theirs[drawn].mean()
        return [a, b, a - b]

    one, other, change = np.ptp(bootstrap(statistics, 100), axis=1)
    assert change < 0.03 * one and change < 0.03 * other


def test_the_same_data_gives_the_same_interval_and_nan_is_left_out() -> None:
    values = np.arange(10.0)

    def statistics(drawn: np.ndarray) -> list[float]:
        chosen = values[drawn]
        return [chosen.mean(), np.nan if 0 in drawn else chosen.min(), np.nan]

    first, second = (bootstrap(statistics, 10) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first[1, 0] >= 1 and np.isnan(first[2]).all()
