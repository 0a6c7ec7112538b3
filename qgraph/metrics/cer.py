"""Character error rate of text and speech recognisers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import DataError
from qgraph.metrics.metric import Arrays, Contributions, Metric
from qgraph.metrics.reading import BLANK, ctc_greedy, edit_distance, read_alphabet, spell

LABELS = ("text", "texts", "label", "labels", "tokens", "y")


@dataclass(frozen=True, kw_only=True)
class CharacterErrors(Metric):
    """Edits that turn what was read into the labels, by the labels' length.

    Reads CTC scores [rows, steps, classes] greedily, class 0 being the blank. Labels are texts,
    where the model's metadata has its alphabet (`character`), or class numbers [rows, length],
    where 0 and negative numbers are padding. Spaces count like other characters.

    Attributes:
        alphabet: The characters from class 1 on, from the model's metadata; None without.
    """

    name: str = "cer"
    better: Literal["higher", "lower"] = "lower"

    alphabet: tuple[str, ...] | None = None

    def bind(self, models: Sequence[Path]) -> Self:
        """Take the alphabet of the first model that has one: all read the same texts."""
        found = (alphabet for path in models if (alphabet := read_alphabet(path)) is not None)
        return replace(self, alphabet=next(found, None))

    def contributions(self, outputs: Arrays, labels: Arrays) -> Contributions:
        """Return [edits, length of the label] for each row."""
        scores = self.pick_output(outputs, 3, "[rows, steps, classes]")
        wanted = self.pick_label(labels, LABELS)
        if len(wanted) != len(scores):
            raise DataError(f"{len(wanted)} labels don't fit {len(scores)} rows of the output")
        return np.array([self._row(*pair) for pair in zip(scores, wanted, strict=True)], np.float64)

    def _row(self, scores: NDArray[np.floating], wanted: Any) -> tuple[int, int]:
        read = ctc_greedy(scores)
        if isinstance(wanted, str):
            if self.alphabet is None:
                raise DataError(
                    "the label is text, and no model's metadata has an alphabet (`character`)",
                    fix="give class numbers, or a metric of your own as module:function",
                )
            text = spell(read, self.alphabet, scores.shape[1])
            return edit_distance(text, wanted), len(wanted)
        tokens = np.atleast_1d(np.asarray(wanted))
        if tokens.dtype.kind not in "iu":
            raise DataError(f"labels of type {tokens.dtype.name} are neither text nor classes")
        kept = tokens[tokens > BLANK].tolist()
        return edit_distance(read.tolist(), kept), len(kept)
