"""Perplexity of language models: how many tokens the model hesitates among, on average."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import DataError
from qgraph.metrics.metric import Arrays, Contributions, Metric

LABELS = ("labels", "label", "input_ids")
MASK = "attention_mask"
IGNORED = -100
# Positions whose logits are widened to float64 at a time: 25 MB at 49,152 tokens.
_POSITIONS = 64


@dataclass(frozen=True, kw_only=True)
class Perplexity(Metric):
    """exp of the mean negative log-likelihood of each token given those before it.

    Labels have the positions of the inputs and are shifted here: the logits at one position are
    those of the next token. The label -100 is left out, and so are positions where the input
    `attention_mask` is 0.

    Source:
        https://huggingface.co/docs/transformers/perplexity (windows that do not overlap).
    """

    name: str = "perplexity"
    better: Literal["higher", "lower"] = "lower"

    def contributions(self, outputs: Arrays, labels: Arrays) -> Contributions:
        """Return [negative log-likelihood in nats, tokens] for each row."""
        logits = self.pick_output(outputs, 3, "[rows, positions, tokens]")
        tokens = self.pick_label(labels, LABELS)
        if tokens.dtype.kind not in "iu" or tokens.shape != logits.shape[:2]:
            raise DataError(
                f"labels {tokens.dtype.name} {list(tokens.shape)} don't fit logits of "
                f"{list(logits.shape)}",
                fix="give an integer for each position",
            )
        counted = tokens != IGNORED
        mask = labels.get(MASK)
        if mask is not None and mask.shape == tokens.shape:
            counted &= mask != 0
        pairs = zip(logits, tokens.astype(np.int64), counted, strict=True)
        return np.array([_window(*pair) for pair in pairs], np.float64).reshape(-1, 2)

    def score(self, contributions: Contributions) -> float:
        """Return exp of the mean over all tokens."""
        return float(np.exp(super().score(contributions)))


def _window(
    logits: NDArray[Any], tokens: NDArray[np.int64], counted: NDArray[np.bool_]
) -> tuple[float, int]:
    """Negative log-likelihood and number of the tokens from the second on."""
    positions = np.flatnonzero(counted[1:])
    targets = tokens[1:][positions]
    bad = targets[(targets < 0) | (targets >= logits.shape[1])]
    if bad.size:
        raise DataError(
            f"token {bad[0]} is not among the logits' {logits.shape[1]}",
            fix=f"mark what is to be left out with {IGNORED}",
        )
    total = 0.0
    for start in range(0, len(positions), _POSITIONS):
        part = slice(start, start + _POSITIONS)
        total += _negative_log_likelihood(logits[positions[part]], targets[part])
    return total, len(positions)


def _negative_log_likelihood(logits: NDArray[Any], targets: NDArray[np.int64]) -> float:
    wide = logits.astype(np.float64)
    own = np.take_along_axis(wide, targets[:, None], axis=1)[:, 0]
    # Shifted by the maximum, so that exp can't overflow.
    top = wide.max(axis=1)
    wide -= top[:, None]
    return float((top + np.log(np.exp(wide, out=wide).sum(axis=1)) - own).sum())
