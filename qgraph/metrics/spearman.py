"""Spearman's rank correlation of sentence encoders with judgements of similarity."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import DataError
from qgraph.metrics.metric import Arrays, Contributions, Metric

LABELS = ("score", "label", "labels", "y", "similarity")


@dataclass(frozen=True, kw_only=True)
class Spearman(Metric):
    """Rank correlation of the cosine between two embeddings with the label of the pair.

    The data gives both inputs of a pair, `a.NAME` and `b.NAME` for each input NAME.

    Source:
        Cer et al., SemEval-2017 task 1, section 5 (pairs of sentences, scores 0 to 5); ranks of
        equal values are averaged, as in Spearman's definition for ties.
    """

    name: str = "spearman"
    sides: ClassVar[tuple[str, ...]] = ("a.", "b.")

    def contributions(self, outputs: Arrays, labels: Arrays) -> Contributions:
        """Return [cosine, label] for each pair."""
        a, b = (
            self.pick_output(outputs, 2, "[rows, size]", side).astype(np.float64)
            for side in self.sides
        )
        label = self.pick_label(labels, LABELS)
        if label.dtype.kind not in "iuf" or label.size != len(a):
            raise DataError(
                f"labels {label.dtype.name} {list(label.shape)} don't fit {len(a)} pairs",
                fix="give one number for each pair",
            )
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        if not lengths.all():
            raise DataError("an embedding is zero, which has no cosine")
        return np.stack([(a * b).sum(axis=1) / lengths, label.reshape(-1)], axis=1)

    def score(self, contributions: Contributions) -> float:
        """Return the correlation of the two columns' ranks; NaN where one is constant."""
        ours, theirs = (average_ranks(column) for column in contributions.T)
        ours, theirs = ours - ours.mean(), theirs - theirs.mean()
        scale = float(np.sqrt((ours @ ours) * (theirs @ theirs)))
        return float(ours @ theirs) / scale if scale else float("nan")


def average_ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the rank of each value, from 1; equal values share the mean of their ranks."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[group]
    return ranks
