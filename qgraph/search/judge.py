"""What a model loses against the original on one part of the data, and whether that is too much."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qgraph.data import DataSet
from qgraph.errors import ModelError
from qgraph.evaluation import FEW_SAMPLES
from qgraph.metrics.comparison import compare
from qgraph.metrics.margins import likely_bound
from qgraph.metrics.metric import Contributions, Metric
from qgraph.metrics.scoring import score_data
from qgraph.runtime.backend import Session

# So many samples are left out, one at a time, to see what a single one decides.
_LEFT_OUT = 200
# Without a single loss in n samples, the true share may be 3 / n (95%; Hanley and Lippman-Hand
# 1983, "If nothing goes wrong, is everything all right?").
_RULE_OF_THREE = 3


@dataclass(frozen=True)
class Verdict:
    """A model's score beside the original's.

    Attributes:
        score: The model's.
        original: The original's.
        drop: By how much the model is worse, in the metric's unit; below 0 it is better.
        low: Lower end of the drop's 95% interval, drawn pair by pair.
        high: Upper end.
        samples: Rows that were scored.
        few: Whether one sample decides too much for the drop that is allowed.
        upper: With few samples, what the drop on as many further ones stays below, by how near answers
            are to being others; None where that is not known, and `high` counts.
    """

    score: float
    original: float
    drop: float
    low: float
    high: float
    samples: int
    few: bool = False
    upper: float | None = None

    @property
    def bound(self) -> float:
        """What counts: the drop, or with too few samples what it stays below."""
        if not self.few:
            return self.drop
        return max(self.drop, self.high if self.upper is None else self.upper)

    def holds(self, max_drop: float | None) -> bool:
        """Whether no more is lost than is allowed."""
        # Scores are ratios of sums: their last bits mean nothing.
        return max_drop is None or self.bound <= max_drop + 1e-12


class Judge:
    """Scores models against the original on the same samples, which runs only once.

    Attributes:
        theirs: What the original's samples contribute.
        others: What it contributes on further samples, whose margins count, too; see
            `qgraph.metrics.margins`.
        seconds: Time of running the original on them.
    """

    def __init__(
        self,
        metric: Metric,
        data: DataSet,
        original: Session,
        others: Sequence[Contributions] = (),
    ) -> None:
        """Run the original.

        Args:
            metric: The metric, bound.
            data: Labelled samples.
            original: The original, open.
            others: What it contributes on further samples.

        Raises:
            DataError: Labels are missing or don't fit.
            ModelError: The original gives NaN.
        """
        self.metric, self.data, self._original = metric, data, original
        self.others = tuple(others)
        start = time.perf_counter()
        self.theirs = self._rows(original)
        self.seconds = time.perf_counter() - start

    def verdict(self, session: Session, max_drop: float | None) -> Verdict:
        """Run a model on all samples and compare it.

        Args:
            session: The model.
            max_drop: What is allowed, which decides whether samples are few.

        Raises:
            DataError: The samples have no score.
        """
        try:
            ours = self._rows(session)
        except ModelError:  # it gives NaN: nothing is left of the score
            theirs = self.metric.score(self.theirs)
            return Verdict(np.nan, theirs, np.inf, np.inf, np.inf, len(self.theirs))
        return judged(self.metric, ours, self.theirs, max_drop, self.others)

    def _rows(self, session: Session) -> Contributions:
        sessions = {"model": session}
        originals = {}
        if self.metric.versus_original:
            sessions["original"] = self._original
            originals = {"model": "original"}
        found = score_data(sessions, originals, self.metric, self.data, lambda done: None)
        return found["model"]


def judged(
    metric: Metric,
    ours: Contributions,
    theirs: Contributions,
    max_drop: float | None,
    others: Sequence[Contributions] = (),
) -> Verdict:
    """Compare what two models contribute; `others` is what the original does on further samples."""
    found = compare(metric, ours, theirs)
    low, high = found.change.interval
    drop, ends = found.change.value, (low, high)
    if metric.better == "higher":
        drop, ends = -drop, (-high, -low)
    few = max_drop is not None and are_few(metric, ours, max_drop)
    upper = None
    if few and metric.margins:
        more = np.concatenate([rows[:, 2] for rows in others]) if others else None
        upper = likely_bound(theirs[:, 2], ours[:, 2], more)
    return Verdict(found.ours.value, found.theirs.value, drop, *ends, len(ours), few, upper)


def are_few(metric: Metric, rows: Contributions, max_drop: float) -> bool:
    """Whether the samples are too few to tell a drop of `max_drop` from none.

    They are where three times what a single sample can change is more than that.
    """
    if len(rows) < FEW_SAMPLES:
        return True
    whole = metric.score(rows)
    step = max(1, len(rows) // _LEFT_OUT)
    changes = [
        abs(metric.score(np.delete(rows, index, axis=0)) - whole)
        for index in range(0, len(rows), step)
    ]
    # Where all rows are alike, such as all right, leaving one out changes nothing: losing it would.
    most = max(float(np.nanmax(changes)), abs(whole) / len(rows))
    return _RULE_OF_THREE * most > max_drop
