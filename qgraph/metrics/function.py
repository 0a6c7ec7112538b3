"""A metric of the user's own: a function named as `package.module:function`.

It is called once for each sample with two dicts of arrays, the outputs by name and the labels by
name; the labels have the sample's inputs beside them, and the first axis of all counts rows. It
returns

- a number, or one for each row: the score is their mean;
- or float [rows, 2], amounts and weights: the score is the sum of amounts by the sum of weights.

Lower scores are better where the function has an attribute `better = "lower"`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from qgraph.data.functions import import_function
from qgraph.errors import DataError, QGraphError, UsageError
from qgraph.metrics.metric import Arrays, Contributions, Metric


@dataclass(frozen=True, kw_only=True)
class FunctionMetric(Metric):
    """What the function returns, averaged over rows.

    Attributes:
        function: Called with outputs and labels.
    """

    function: Callable[[Arrays, Arrays], Any]

    @classmethod
    def load(cls, spec: str, output: str | None, label: str | None) -> Self:
        """Import the function `package.module:function`.

        Raises:
            UsageError: An output or label is named, or the function's `better` is no direction.
            DataError: There is no such function.
        """
        if output is not None or label is not None:
            raise UsageError(
                f"{spec} gets all outputs and labels", fix="leave --output and --label out"
            )
        function = import_function(spec)
        better: Any = getattr(function, "better", "higher")
        if better not in ("higher", "lower"):
            raise UsageError(
                f"the function's `better` is {better!r}", where=spec, fix="set 'higher' or 'lower'"
            )
        return cls(name=spec, better=better, function=function)

    def contributions(self, outputs: Arrays, labels: Arrays) -> Contributions:
        """Return what the function gives as [amount, weight] for each row.

        Raises:
            DataError: The function raises something, or gives no such numbers.
        """
        try:
            found = np.asarray(self.function(outputs, labels), np.float64)
        except QGraphError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise DataError(f"raised {type(error).__name__} ({error})", where=self.name) from error
        if found.ndim == 2 and found.shape[1] == 2:
            return found
        if found.ndim > 1:
            raise DataError(
                f"gives an array of shape {list(found.shape)}",
                where=self.name,
                fix="return a number, one for each row, or [rows, 2]",
            )
        amounts = np.atleast_1d(found)
        return np.stack([amounts, np.ones(len(amounts))], axis=1)
