"""What a classifier is likely to lose, by how near its answers are to being others.

Of few samples hardly one changes its answer, so that the number of those that do says little. How far each
answer is from another, its margin, and how far margins move are known of every sample: each margin is paired with
each movement, and the pairs that turn an answer are counted. On 222 photographs that halves the deviation of MobileNetV2's
estimated drop (docs/promise.md). It takes movements to be as large at small margins as at others.
"""

import numpy as np
from numpy.typing import NDArray

from qgraph.metrics.bootstrap import bootstrap

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


def likely_drop(margins_: Floats, moves: Floats) -> float:
    """Return the share of answers that turn wrong minus that of those that turn right, over all pairs.

    Args:
        margins_: float64 [n], the original's.
        moves: float64 [m], by how much a model's margins are other than the original's, of any rows.
    """
    before, moves = margins_[np.isfinite(margins_)], np.sort(moves)
    if not len(before) or not len(moves):
        return 0.0
    falls = np.searchsorted(moves, -before, side="right") / len(moves)
    right = before > 0
    turned = float(falls[right].sum() - (1 - falls[~right]).sum())
    return turned / len(margins_)


def likely_bound(theirs: Floats, ours: Floats, others: Floats | None = None) -> float:
    """Return what `likely_drop` stays below with 95% confidence, rows drawn again.

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
    rng = np.random.default_rng(0)

    def drawn_again(drawn: NDArray[np.intp]) -> list[float]:
        return [likely_drop(every[rng.integers(0, len(every), len(every))], moves[drawn])]

    # Of an interval of 90%, one in twenty lies above the upper end.
    return float(bootstrap(drawn_again, len(moves), level=0.9)[0][1])
