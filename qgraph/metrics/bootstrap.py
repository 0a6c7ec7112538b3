"""Confidence intervals by drawing the samples again."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95


def bootstrap(
    statistics: Callable[[NDArray[np.intp]], Sequence[float]], count: int, *, seed: int = 0
) -> NDArray[np.float64]:
    """Return 95% percentile intervals of statistics of a sample.

    Statistics that are computed from the same draw are paired: the difference of two models on the
    same samples varies less than their scores do.

    Args:
        statistics: Gives k numbers for a choice of samples, int [count] with repetitions.
        count: Number of samples.
        seed: Of the draws, so that the same data gives the same intervals.

    Returns:
        float64 [k, 2], lower and upper bounds. Draws where a statistic is NaN are left out of its
        interval; NaN where all are.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3 (percentile
        interval).
    """
    rng = np.random.default_rng(seed)
    draws = np.array([statistics(rng.integers(0, count, count)) for _ in range(RESAMPLES)])
    tails = (1 - LEVEL) / 2
    return np.array([_quantiles(column, [tails, 1 - tails]) for column in draws.T])


def _quantiles(values: NDArray[np.float64], levels: Sequence[float]) -> NDArray[np.float64]:
    known = values[~np.isnan(values)]
    return np.quantile(known, levels) if known.size else np.full(len(levels), np.nan)
