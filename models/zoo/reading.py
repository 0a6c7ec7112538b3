"""Reads text lines from a recogniser's scores and counts its errors."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qgraph.errors import DataError, ModelError


def ctc_greedy(scores: npt.NDArray[np.floating], characters: Sequence[str]) -> str:
    """Read one line: best class of each step, repeats merged, blanks dropped.

    Args:
        scores: float [steps, classes], any monotone score (logits or probabilities).
        characters: The character of each class; class 0 is the blank.

    Returns:
        The text; a character repeats only where a blank stands between.

    Raises:
        ModelError: `scores` has another number of classes than `characters`.

    Source:
        Graves et al., Connectionist Temporal Classification, ICML 2006, section 3.2 (best path).
    """
    if scores.ndim != 2 or scores.shape[1] != len(characters):
        raise ModelError(
            f"scores of shape {list(scores.shape)} don't fit an alphabet of {len(characters)}"
        )
    best = scores.argmax(1)
    starts = np.concatenate(([True], best[1:] != best[:-1]))[: len(best)]
    return "".join(characters[int(index)] for index in best[starts & (best != 0)])


def edit_distance(a: str, b: str) -> int:
    """Return the fewest insertions, deletions and substitutions of characters from `a` to `b`."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            change = diagonal + (left != right)
            diagonal, row[j] = row[j], min(change, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def cer(reads: Sequence[str], texts: Sequence[str]) -> float:
    """Return the character error rate: edits from reads to texts, by the texts' characters.

    Args:
        reads: What the recogniser read, one string a line.
        texts: What the lines say, in the same order; spaces count like other characters.

    Returns:
        Sum of edit distances by sum of text lengths; above 1 where much is read too much.

    Raises:
        DataError: The lists differ in length, or the texts have no characters.
    """
    if len(reads) != len(texts):
        raise DataError(f"{len(reads)} reads don't fit {len(texts)} texts")
    total = sum(map(len, texts))
    if total == 0:
        raise DataError("the texts have no characters, so there is no error rate")
    return sum(map(edit_distance, reads, texts)) / total
