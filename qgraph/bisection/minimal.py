"""The smallest set whose members, left alone, bring back what was lost."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def smallest_set(
    items: Sequence[Item], restores: Callable[[Sequence[Item]], bool]
) -> list[Item] | None:
    """Find a set that restores and of which no member can be left out.

    The shortest beginning of `items` that restores is found by halving, then each member is left
    out where that is possible, the last first. With `items` from the guiltiest on, few are tried:
    log2(n) for the beginning and one for each of its members. Where several small sets restore,
    one of them is found.

    Args:
        items: From the most suspicious on.
        restores: Whether a set is enough; it gets its members in the order of `items`.

    Returns:
        The set in the order of `items`, empty where nothing is lost; None where all of them
        together do not restore.
    """
    if restores([]):
        return []
    if not restores(items):
        return None
    low, high = 0, len(items)  # the first does not restore, the second does
    while high - low > 1:
        middle = (low + high) // 2
        if restores(items[:middle]):
            high = middle
        else:
            low = middle
    kept = list(items[:high])
    # Without its last member the set did not restore, so that one stays.
    for item in kept[-2::-1]:
        fewer = [each for each in kept if each != item]
        if restores(fewer):
            kept = fewer
    return kept
