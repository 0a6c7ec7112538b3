"""What a classifier may lose, by how near its answers are to being others.

Of few samples hardly one changes its answer, so that the number of those that do says little. How far each
answer is from another, its margin, and how far margins move are known of every sample: any margin may meet any
movement. It takes movements to be as large at small margins as at others; `benchmarks.margins` has how often
that is too little.
"""

import numpy as np
from numpy.typing import NDArray

from qgraph.metrics.bootstrap import LEVEL, RESAMPLES

Floats = NDArray[np.float64]


def margins(scores: NDArray[np.floating], classes: NDArray[np.int64], best: int = 1) -> Floats:
    """Return by how much each row's class is ahead of what would push it out of the `best` classes.

    Args:
        scores: [rows, classes]; where they are probabilities, their logarithms are taken, which move
            alike whether a row is certain or not.
        classes: int64 [rows], in range.
        best: So many classes count as right.

    Returns:
        float64 [rows]; above 0 the answer is right. Infinite where no `best` other classes are.
    """
    wide = scores.astype(np.float64)
    if (wide >= 0).all() and np.allclose(wide.sum(axis=1), 1, atol=1e-3):
        wide = np.log(np.maximum(wide, np.finfo(np.float32).tiny))
    if wide.shape[1] <= best:
        return np.full(len(wide), np.inf)
    own = np.take_along_axis(wide, classes[:, None], axis=1)[:, 0]
    np.put_along_axis(wide, classes[:, None], -np.inf, axis=1)
    rival: Floats = np.partition(wide, -best, axis=1)[:, -best]
    return own - rival


def turned(margins_: Floats, moves: Floats) -> Floats:
    """Return 1 for each answer that turns wrong, -1 for each that turns right, 0 for all others.

    Args:
        margins_: float64 [n], the original's.
        moves: float64 [n], what a model adds to them.
    """
    right = (margins_ > 0).astype(np.float64)
    return right - (margins_ + moves > 0)


def likely_bound(theirs: Floats, ours: Floats, others: Floats | None = None) -> float:
    """Return what the drop on as many further samples stays below, with 95% confidence.

    Args:
        theirs: float64 [m], the original's margins.
        ours: float64 [m], the model's of the same rows.
        others: float64 [k], the original's of further rows: how near its answers are to being others needs no
            model, and may be known of more samples.
    """
    every = theirs if others is None else np.concatenate([theirs, others])
    finite = np.isfinite(theirs) & np.isfinite(ours)
    moves = ours[finite] - theirs[finite]
    if not len(moves):
        return 0.0
    rng, count = np.random.default_rng(0), len(theirs)
    draws = [
        turned(rng.choice(every, count), rng.choice(moves, count)).mean() for _ in range(RESAMPLES)
    ]
    return float(np.quantile(draws, LEVEL))
