"""Scores of one or two models from their contributions, with confidence intervals."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import DataError
from qgraph.metrics.bootstrap import bootstrap
from qgraph.metrics.metric import Contributions, Metric

Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% confidence interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Comparison:
    """Scores of two models on the same samples.

    Attributes:
        ours: The score of the model that is judged.
        theirs: The score of what it is compared with.
        change: `ours` minus `theirs`; both are scored on the same draws, so that its interval is
            narrower than those of the scores.
    """

    ours: Estimate
    theirs: Estimate
    change: Estimate


def estimate(metric: Metric, rows: Contributions) -> Estimate:
    """Return the score of a model.

    Args:
        metric: The metric.
        rows: float64 [n, k], what the samples contribute.

    Raises:
        DataError: These samples have no score.
    """
    return Estimate(
        _score(metric, rows),
        _interval(bootstrap(lambda drawn: [metric.score(rows[drawn])], len(rows))[0]),
    )


def compare(metric: Metric, ours: Contributions, theirs: Contributions) -> Comparison:
    """Compare two models, sample by sample.

    Args:
        metric: The metric.
        ours: float64 [n, k], what the samples contribute.
        theirs: The same of the other model, in the same order.

    Raises:
        DataError: These samples have no score, or differ in number.
    """
    if len(ours) != len(theirs):
        raise DataError(
            f"{metric.name} gives {len(ours)} numbers of one model and {len(theirs)} of the other"
        )
    scores = [_score(metric, rows) for rows in (ours, theirs)]

    def statistics(drawn: NDArray[np.intp]) -> list[float]:
        one, other = metric.score(ours[drawn]), metric.score(theirs[drawn])
        return [one, other, one - other]

    intervals = [_interval(bounds) for bounds in bootstrap(statistics, len(ours))]
    values = [*scores, scores[0] - scores[1]]
    return Comparison(*(Estimate(*pair) for pair in zip(values, intervals, strict=True)))


def _score(metric: Metric, rows: Contributions) -> float:
    score = metric.score(rows)
    if not math.isfinite(score):
        raise DataError(f"these {len(rows)} samples have no {metric.name} (it is {score})")
    return score


def _interval(bounds: NDArray[np.float64]) -> Interval:
    return float(bounds[0]), float(bounds[1])
