"""How often a classifier decides like the original: for data without labels."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qgraph.errors import DataError
from qgraph.metrics.metric import Arrays, Contributions, Metric


@dataclass(frozen=True, kw_only=True)
class Agreement(Metric):
    """Part of the rows whose highest score is at the class where the original has it."""

    name: str = "agreement"
    versus_original: ClassVar[bool] = True

    def contributions(self, outputs: Arrays, labels: Arrays) -> Contributions:
        """Return [same class, 1] for each row."""
        ours, theirs = (self.pick_output(side, 2, "[rows, classes]") for side in (outputs, labels))
        if ours.shape != theirs.shape:
            raise DataError(
                f"outputs of shape {ours.shape} don't fit the original's {theirs.shape}"
            )
        same = ours.argmax(axis=1) == theirs.argmax(axis=1)
        return np.stack([same, np.ones(len(same))], axis=1)
