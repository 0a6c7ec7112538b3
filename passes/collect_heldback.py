"""Holds samples back by their content, so that neither order nor sharding changes the choice."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.data.digest import new_hash
from qgraph.passes.collect import sample_count
from qgraph.passes.collect_values import Feeds, rereadable

# One sample in four is held back.
HOLD_ONE_IN = 4
# At most so many are kept to measure errors on.
KEPT = 32


class HeldBack:
    """Passes data through and keeps copies of some samples.

    A sample is held back if a hash of its content says so. Of those held back the `KEPT` with the
    least hashes are kept, fewer if they would take more than `memory` bytes. Data without any
    sample held back (there are few) keeps others, so that there is something to measure on.

    Attributes:
        held: Whether each sample seen so far is held back, by its number.
    """

    def __init__(self, data: Iterable[Feeds], memory: int) -> None:
        """Wrap `data`."""
        self._data, self._memory = data, memory
        self.held: list[bool] = []
        self._kept: list[_Kept] = []
        self.rereadable = rereadable(data)
        self.expected = sample_count(data)

    def __iter__(self) -> Iterator[Feeds]:
        """Give the samples; each is hashed when it is first read, also where reading broke off."""
        for index, feeds in enumerate(self._data):
            if index == len(self.held):
                self._take(feeds)
            yield feeds

    @property
    def samples(self) -> list[dict[str, NDArray[Any]]]:
        """The samples kept, in an order that depends on their content alone."""
        held = [each.feeds for each in self._kept if each.held]
        return held or [each.feeds for each in self._kept]

    def _take(self, feeds: Feeds) -> None:
        number = _hash(feeds)
        held = number % HOLD_ONE_IN == 0
        self.held.append(held)
        if len(self._kept) == KEPT and (not held, number) >= self._kept[-1].order:
            return
        # Copies: whoever gives the samples may use their memory again.
        copies = {name: np.array(array) for name, array in feeds.items()}
        self._kept.append(_Kept(held, number, copies))
        self._kept.sort(key=lambda each: each.order)
        del self._kept[KEPT:]
        while len(self._kept) > 1 and sum(each.nbytes for each in self._kept) > self._memory:
            self._kept.pop()


@dataclass(frozen=True)
class _Kept:
    held: bool
    number: int
    feeds: dict[str, NDArray[Any]]

    @property
    def order(self) -> tuple[bool, int]:
        """Those held back come first."""
        return not self.held, self.number

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.feeds.values())


def _hash(feeds: Feeds) -> int:
    hasher = new_hash()
    for name in sorted(feeds):
        array = np.asarray(feeds[name])
        hasher.update(f"{name} {array.dtype} {array.shape}".encode())
        # Arrays of objects (strings) hold addresses.
        content = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
        hasher.update(content)
    return int(hasher.hexdigest()[:16], 16)
