"""What counts as lost: the outputs' signal to noise, or the user's metric."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qgraph.runtime.backend import Session
from qgraph.runtime.reference import open_reference
from qgraph.search.judge import Judge


@dataclass(frozen=True)
class Score:
    """What one model is worth.

    Attributes:
        value: In the scorer's unit; NaN where it could not be run.
        holds: Whether it is good enough.
        note: Why it could not be run.
    """

    value: float
    holds: bool
    note: str = ""

    def __str__(self) -> str:
        """The number as people read it."""
        return self.note if math.isnan(self.value) else f"{self.value:.4g}"


class Scorer(Protocol):
    """Scores models on the same samples."""

    @property
    def unit(self) -> str:
        """What the numbers are."""
        ...

    @property
    def floor(self) -> str:
        """What is good enough, in words."""
        ...

    def score(self, session: Session) -> Score:
        """Score a model."""
        ...

    def worse(self, score: Score) -> float:
        """How bad a score is: greater is worse."""
        ...


class SignalToNoise:
    """The worst output's SQNR against the original, decibels."""

    unit = "SQNR, dB"

    def __init__(
        self,
        original: Path,
        samples: Sequence[Mapping[str, Any]],
        least: float,
        state: Collection[str] = (),
    ) -> None:
        """Run the original.

        Args:
            original: Its file; it runs unoptimised.
            samples: Feeds.
            least: What is good enough, dB.
            state: Outputs that are KV caches, which do not count.
        """
        self._samples, self.least, self._state = list(samples), least, frozenset(state)
        with open_reference(original) as session:
            self._wanted = [session.run(sample) for sample in self._samples]

    @property
    def floor(self) -> str:
        """What is good enough."""
        return f"at least {self.least:g} dB"

    def score(self, session: Session) -> Score:
        """Score a model: energies are summed over all samples, the worst output counts."""
        signal: dict[str, float] = {}
        noise: dict[str, float] = {}
        for sample, wanted in zip(self._samples, self._wanted, strict=True):
            found = session.run(sample)
            for name, array in wanted.items():
                if name in self._state or not is_float(array):
                    continue
                energy, error = _energies(array, found[name])
                signal[name] = signal.get(name, 0.0) + energy
                noise[name] = noise.get(name, 0.0) + error
        value = min((_decibel(signal[name], noise[name]) for name in signal), default=math.inf)
        return Score(value, value >= self.least)

    def worse(self, score: Score) -> float:
        """Lower is worse."""
        return math.inf if math.isnan(score.value) else -score.value


class Metric:
    """The drop of the user's metric on labelled data."""

    def __init__(self, judge: Judge, most: float) -> None:
        """Remember who judges, and the drop that is allowed."""
        self._judge, self.most = judge, most
        self.unit = f"drop of {judge.metric.name}"

    @property
    def floor(self) -> str:
        """What is good enough."""
        return f"at most {self.most:g} worse"

    def score(self, session: Session) -> Score:
        """Score a model. The drop itself counts: nothing is promised here."""
        drop = self._judge.verdict(session, None).drop
        return Score(drop, drop <= self.most + 1e-12)

    def worse(self, score: Score) -> float:
        """A larger drop is worse."""
        return math.inf if math.isnan(score.value) else score.value


def is_float(array: Any) -> bool:
    """Whether an output holds floats, those that numpy does not know included."""
    dtype = getattr(array, "dtype", None)
    return dtype is not None and (dtype.kind == "f" or dtype.name.startswith(("bfloat", "float")))


def _energies(want: Any, found: Any) -> tuple[float, float]:
    """Energy of the signal and of the error; the latter is infinite where one alone is finite."""
    want, found = np.asarray(want, np.float64), np.asarray(found, np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(found)):
        return float((want[finite] ** 2).sum()), math.inf
    return float((want[finite] ** 2).sum()), float(((found[finite] - want[finite]) ** 2).sum())


def _decibel(signal: float, noise: float) -> float:
    if math.isinf(noise):
        return -math.inf
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
