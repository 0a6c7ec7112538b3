"""Top-1 and top-5 accuracy of classifiers."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import DataError
from qgraph.metrics.margins import margins
from qgraph.metrics.metric import Arrays, Contributions, Metric, class_numbers

LABELS = ("label", "labels", "y", "target", "class")


@dataclass(frozen=True, kw_only=True)
class Top1(Metric):
    """Part of the rows whose class has the highest score; of equal scores the first one counts."""

    name: str = "top1"
    margins: ClassVar[bool] = True
    best: ClassVar[int] = 1

    def contributions(self, outputs: Arrays, labels: Arrays) -> Contributions:
        """Return [hit, 1, margin] for each row."""
        scores = self.pick_output(outputs, 2, "[rows, classes]")
        classes = class_numbers(self.pick_label(labels, LABELS), len(scores))
        hits = ranks(scores, classes) < self.best
        ahead = margins(scores, classes, self.best)
        return np.stack([hits, np.ones(len(hits)), ahead], axis=1)


@dataclass(frozen=True, kw_only=True)
class Top5(Top1):
    """Part of the rows whose class is among the five with the highest scores."""

    name: str = "top5"
    best: ClassVar[int] = 5


def ranks(scores: NDArray[np.floating], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many classes come before the labelled one; of equal scores the first is first.

    Args:
        scores: [rows, classes].
        classes: int64 [rows].

    Raises:
        DataError: A class is out of range.
    """
    count = scores.shape[1]
    bad = classes[(classes < 0) | (classes >= count)]
    if bad.size:
        raise DataError(
            f"class {bad[0]} is not among the output's {count}",
            fix="number the classes as the model does",
        )
    own = np.take_along_axis(scores, classes[:, None], axis=1)
    earlier = np.arange(count) < classes[:, None]
    before: NDArray[np.int64] = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return before
