"""Looks for the range with the least cost among those within the observed one."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

# (lows, highs), float64 [candidates] each -> costs, float64 [candidates]
Cost = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

# Shares of the observed bound that are tried: 4 steps an octave down to 2^-8 and 2 down to 2^-22,
# then 32 steps an octave around the best.
COARSE = 2.0 ** -np.concatenate([np.arange(32) / 4, np.arange(16, 45) / 2])
FINE = 2.0 ** (np.arange(-8, 9) / 32)
ROUNDS = 3


def best_range(
    low: float, high: float, cost: Cost, *, symmetric: bool = False
) -> tuple[float, float]:
    """Shrink [low, high] to where `cost` is least.

    A symmetric or one-sided range has one bound to look for. For others both bounds shrink
    together first, then each in turn until neither moves (at most `ROUNDS` times). Of equal
    costs the widest range wins.

    Args:
        low: Least value; above 0 counts as 0, which every encoding can represent.
        high: Greatest value; below 0 counts as 0.
        cost: Cost of candidate ranges. The same candidates must always cost the same.
        symmetric: Whether only ranges [-b, b] are wanted.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    if low == high:
        return low, high

    def shrink(at_low: float, at_high: float, move: tuple[int, int]) -> tuple[float, float]:
        """Try shares of the full bounds for those in `move`, the others stay."""
        shares = COARSE
        for around in (False, True):
            lows = low * shares if move[0] else np.full(len(shares), at_low)
            highs = high * shares if move[1] else np.full(len(shares), at_high)
            lows, highs = np.append(lows, at_low), np.append(highs, at_high)
            best = int(np.argmin(cost(lows, highs)))
            at_low, at_high = float(lows[best]), float(highs[best])
            if around:
                break
            share = at_high / high if move[1] and high > 0 else at_low / low
            shares = np.unique(np.minimum(share * FINE, 1.0))[::-1]
        return at_low, at_high

    found = shrink(low, high, (1, 1))
    if symmetric or low == 0 or high == 0:
        return found
    for _ in range(ROUNDS):
        before = found
        found = shrink(*found, (0, 1))
        found = shrink(*found, (1, 0))
        if found == before:
            break
    return found
