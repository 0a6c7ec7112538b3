"""Choosing the next token from a decoder's logits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import EngineError, UsageError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: What logits are divided by before the softmax; 0 takes the likeliest token.
        top_k: Only the k likeliest tokens are drawn from; 0 for all.
    """

    temperature: float = 0.0
    top_k: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no temperature or count.

        Raises:
            UsageError: One is negative, or the temperature is not finite.
        """
        if not (np.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature {self.temperature} is no number from 0 up")
        if self.top_k < 0:
            raise UsageError(f"top-k {self.top_k} is negative", fix="give 0 for all tokens")

    def choose(self, logits: NDArray[np.floating], rng: np.random.Generator) -> int:
        """Return the next token.

        Args:
            logits: [vocabulary]; -inf for tokens that can't follow.
            rng: Drawn from once, unless the temperature is 0.

        Raises:
            EngineError: A logit is NaN or +inf, or none is finite.
        """
        highest = logits.max()  # NaN where there is one
        if not np.isfinite(highest):
            raise EngineError(f"the model's logits hold {highest}", fix="try it in fp32")
        if self.temperature == 0:
            return int(logits.argmax())
        scores = (logits.astype(np.float64) - float(highest)) / self.temperature
        if 0 < self.top_k < len(scores):
            scores[np.argsort(-scores, kind="stable")[self.top_k :]] = -np.inf
        weights = np.exp(scores)
        return int(rng.choice(len(weights), p=weights / weights.sum()))
