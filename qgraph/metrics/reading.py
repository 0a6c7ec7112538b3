"""Reads texts from a recogniser's scores, and counts errors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import ModelError
from qgraph.onnx_io import peek

BLANK = 0


def ctc_greedy(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the classes of the best path: best of each step, repeats merged, blanks dropped.

    Args:
        scores: [steps, classes], any monotone score (logits or probabilities); class 0 is blank.

    Returns:
        int64 [at most steps]; a class repeats only where a blank stands between.

    Source:
        Graves et al., Connectionist Temporal Classification, ICML 2006, section 3.2 (best path).
    """
    best = scores.argmax(axis=1)
    starts = np.concatenate(([True], best[1:] != best[:-1]))[: len(best)]
    path: NDArray[np.int64] = best[starts & (best != BLANK)]
    return path


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Return the fewest insertions, deletions and substitutions of items from `a` to `b`."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            change = diagonal + (left != right)
            diagonal, row[j] = row[j], min(change, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def read_alphabet(model: Path) -> tuple[str, ...] | None:
    """Return the lines of the model's metadata `character`, or None where it has none.

    PaddleOCR's and RapidOCR's recognisers keep their alphabet there: class 0 is the blank, the
    lines are the classes from 1 on, and a space may follow as the last class.
    """
    text = peek(model).model.metadata_props.get("character")
    # Not splitlines(): it would also split at the alphabet's own Unicode separators.
    return None if text is None else tuple(text.rstrip("\n").split("\n"))


def spell(classes: NDArray[np.int64], alphabet: Sequence[str], count: int) -> str:
    """Return the text of classes.

    Args:
        classes: int64 [n], without blanks.
        alphabet: The characters from class 1 on.
        count: Number of classes; one more than blank and alphabet if a space is the last.

    Raises:
        ModelError: The alphabet has another size.
    """
    characters = ["", *alphabet, " "]
    if not len(characters) - 1 <= count <= len(characters):
        raise ModelError(f"scores of {count} classes don't fit an alphabet of {len(alphabet)}")
    return "".join(characters[index] for index in classes)
