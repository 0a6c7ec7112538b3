"""How often a classifier decides like the original: for data without labels."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qgraph.errors import DataError
from qgraph.metrics.margins import margins
from qgraph.metrics.metric import Arrays, Contributions, Metric


@dataclass(frozen=True, kw_only=True)
class Agreement(Metric):
    """Part of the rows whose highest score is at the class where the original has it."""

    name: str = "agreement"
    versus_original: ClassVar[bool] = True
    margins: ClassVar[bool] = True

    def contributions(self, outputs: Arrays, labels: Arrays) -> Contributions:
        """Return [same class, 1, margin of the original's class] for each row."""
        ours, theirs = (self.pick_output(side, 2, "[rows, classes]") for side in (outputs, labels))
        if ours.shape != theirs.shape:
            raise DataError(
                f"outputs of shape {ours.shape} don't fit the original's {theirs.shape}"
            )
        classes = theirs.argmax(axis=1)
        same = ours.argmax(axis=1) == classes
        return np.stack([same, np.ones(len(same)), margins(ours, classes)], axis=1)
