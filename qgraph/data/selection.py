"""Which samples go to calibration and which are held out; decided by position alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from qgraph.errors import DataError, UsageError


@dataclass(frozen=True)
class Rule:
    """Which positions are held out.

    Attributes:
        held: Positions held out, where the number of samples is known.
        stride: Else every `stride`-th position, from position 1 on.
        most: Else at most this many; 0 for no limit.
    """

    held: frozenset[int] = frozenset()
    stride: int = 0
    most: int = 0

    def holds_out(self, position: int) -> bool:
        """Whether the sample at this position is held out."""
        if not self.stride:
            return position in self.held
        rank, rest = divmod(position - 1, self.stride)
        return rest == 0 and rank >= 0 and (not self.most or rank < self.most)

    def count(self, total: int) -> int:
        """Number of positions held out of `total`."""
        if not self.stride:
            return sum(position < total for position in self.held)
        count = math.ceil(max(total - 1, 0) / self.stride)
        return min(count, self.most) if self.most else count


@dataclass(frozen=True)
class Stage:
    """One side of one split.

    Attributes:
        rule: How the split was made.
        held: Whether this is the side held out.
    """

    rule: Rule
    held: bool

    def __str__(self) -> str:
        """Return the same text for the same choice."""
        rule = self.rule
        return f"held={self.held} of {sorted(rule.held)} every {rule.stride} most {rule.most}"

    def takes(self, position: int) -> bool:
        """Whether the sample at this position belongs to this side."""
        return self.rule.holds_out(position) == self.held

    def count(self, total: int) -> int:
        """Number of samples on this side, of `total` before the split."""
        held = self.rule.count(total)
        return held if self.held else total - held


def make_rule(held_out: float, total: int | None, expected: int | None, where: str) -> Rule:
    """Choose the positions to hold out, spread evenly over the data.

    Args:
        held_out: A fraction of the samples (float, between 0 and 1) or their number (int).
        total: Number of samples; None where it isn't known.
        expected: Where it isn't known, the most there may be.
        where: The source, for messages.

    Raises:
        UsageError: A fraction or number out of range.
        DataError: Fewer samples than the split needs: at least one is left on each side.
    """
    whole = isinstance(held_out, int)
    if isinstance(held_out, bool) or (held_out < 1 if whole else not 0 < held_out < 1):
        raise UsageError(
            f"can't hold out {held_out!r}",
            fix="give a fraction between 0 and 1, or a number of samples of at least 1",
        )
    if total is None:
        spread = (expected or 5 * held_out) / held_out if whole else 1 / held_out
        return Rule(stride=max(2, math.floor(spread)), most=int(held_out) if whole else 0)
    count = int(held_out) if whole else min(max(1, round(held_out * total)), total - 1)
    if not 0 < count < total:
        raise DataError(
            f"has {total} samples, too few to hold out {held_out}",
            where=where,
            fix="give more samples or hold out fewer",
        )
    return Rule(held=frozenset((2 * i + 1) * total // (2 * count) for i in range(count)))


def chooser(stages: tuple[Stage, ...]) -> Callable[[], bool]:
    """Return a function that says, for one sample after the other, whether all stages take it."""
    positions = [0] * len(stages)

    def take() -> bool:
        for index, stage in enumerate(stages):
            position = positions[index]
            positions[index] += 1
            if not stage.takes(position):
                return False
        return True

    return take
