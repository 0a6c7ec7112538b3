"""What a metric is, and how it finds the output and the label that it reads.

A metric turns the outputs of one sample into contributions, one row of numbers for each row of the
sample, and all contributions into a score. So nothing but a few numbers a sample has to be kept,
scores of two models are compared sample by sample, and samples can be drawn again for confidence
intervals (`qgraph.metrics.bootstrap`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import DataError, UsageError, unknown_name
from qgraph.runtime.backend import format_shape

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Contributions = NDArray[np.float64]
"""One row for each row of a sample. Unless a metric says otherwise: an amount and its weight."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Base of all metrics.

    Attributes:
        name: Name for `--metric NAME`.
        better: Whether higher or lower scores are better.
        sides: Prefixes under which the model's inputs stand in the data, one run of the model for
            each; its outputs then have the same prefixes.
        versus_original: Whether it reads the original's outputs in place of labels.
        margins: Whether a third column of its contributions has margins (`qgraph.metrics.margins`).
        output: Output that it reads; None where only one can be meant.
        label: Label that it reads; None for one under a usual name.
    """

    name: str = ""
    better: Literal["higher", "lower"] = "higher"
    sides: ClassVar[tuple[str, ...]] = ("",)
    versus_original: ClassVar[bool] = False
    margins: ClassVar[bool] = False

    output: str | None = None
    label: str | None = None

    def bind(self, models: Sequence[Path]) -> Self:
        """Return the metric with what it has to know of the models, ONNX files, to be scored."""
        return self

    def contributions(self, outputs: Arrays, labels: Arrays) -> Contributions:
        """Return what one sample contributes.

        Args:
            outputs: The model's outputs by name, with the prefixes of `sides`.
            labels: The sample's labels by name, and its inputs: the first axis counts rows. With
                `versus_original`, the original's outputs.

        Returns:
            float64 [rows, k]: for the base's `score`, amounts and weights first.

        Raises:
            UsageError: It can't be told which output or label is meant.
            DataError: Outputs and labels don't fit.
        """
        raise NotImplementedError

    def score(self, contributions: Contributions) -> float:
        """Return the score: here the sum of amounts, column 0, by the sum of weights, column 1.

        Args:
            contributions: float64 [n, k], of any samples in any number.

        Returns:
            NaN where these samples have no score.
        """
        amount, weight = contributions[:, :2].sum(axis=0)
        return float(amount / weight) if weight else float("nan")

    def pick_output(self, outputs: Arrays, axes: int, layout: str, side: str = "") -> Array:
        """Return the output that is named, or else the only one with so many axes.

        Axes of length 1 at the end do not count: some classifiers give [rows, classes, 1, 1].

        Args:
            outputs: All outputs.
            axes: How many axes it has to have.
            layout: What they are, for messages.
            side: Prefix of the run.

        Raises:
            UsageError: There is no such output, or more than one.
        """
        names = [name.removeprefix(side) for name in outputs if name.startswith(side)]
        if self.output is not None and self.output not in names:
            raise unknown_name("output", self.output, names)
        fitting = {
            name: array
            for name in ([self.output] if self.output is not None else names)
            if (array := _without_ends(outputs[side + name], axes)).ndim == axes
        }
        if len(fitting) == 1:
            return next(iter(fitting.values()))
        shapes = "; ".join(f"{name} {format_shape(outputs[side + name].shape)}" for name in names)
        raise UsageError(
            f"{self.name} reads one output {layout}, there are: {shapes}",
            fix="name one with --output" if fitting else "choose another metric",
        )

    def pick_label(self, labels: Arrays, usual: Sequence[str]) -> Array:
        """Return the label that is named, or else the first that has a usual name.

        Raises:
            DataError: There is none.
        """
        names = [self.label] if self.label is not None else usual
        found = next((name for name in names if name in labels), None)
        if found is None:
            raise DataError(
                f"{self.name} needs a label {' or '.join(map(repr, names))} "
                f"(there: {', '.join(labels)})",
                fix="name it with --label",
            )
        return labels[found]


def class_numbers(label: Array, rows: int) -> NDArray[np.int64]:
    """Return the class of each row, int64 [rows].

    Raises:
        DataError: These are no integers, or not one for each row.
    """
    if label.dtype.kind not in "iu":
        raise DataError(
            f"labels of type {label.dtype.name} are no classes", fix="give class numbers from 0"
        )
    if label.size != rows:
        raise DataError(f"{label.size} labels don't fit {rows} rows of the output")
    return label.reshape(-1).astype(np.int64)


def _without_ends(array: Array, axes: int) -> Array:
    while array.ndim > axes and array.shape[-1] == 1:
        array = array[..., 0]
    return array
