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
Order = tuple[bool, int]


class HeldBack:
    """Passes data through and keeps copies of some samples.

    A sample is held back if a hash of its content says so. Of those held back the `KEPT` with the
    least hashes are kept, fewer if they would take more than `memory` bytes. Data without any
    sample held back (there are few) keeps others, so that there is something to measure on.

    Attributes:
        held: Whether each sample seen so far is held back, by its number.
        kept: Those kept, the least hashes first.
        bound: The least of those that memory was too short for; nothing beyond it is kept.
    """

    def __init__(self, data: Iterable[Feeds], memory: int) -> None:
        """Wrap `data`."""
        self._data, self._memory = data, memory
        self.held: list[bool] = []
        self.kept: list[Kept] = []
        self.bound: Order | None = None
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
        held = [each.feeds for each in self.kept if each.held]
        return held or [each.feeds for each in self.kept]

    def merge(self, kept: Iterable["Kept"], bound: "Order | None") -> None:
        """Take in what another one kept of other samples; as if it had seen them itself."""
        self._lower(bound)
        for each in kept:
            self._keep(each)

    def _take(self, feeds: Feeds) -> None:
        number = _hash(feeds)
        held = number % HOLD_ONE_IN == 0
        self.held.append(held)
        if self._wanted((not held, number)):
            # Copies: whoever gives the samples may use their memory again.
            copies = {name: np.array(array) for name, array in feeds.items()}
            self._keep(Kept(held, number, copies))

    def _wanted(self, order: "Order") -> bool:
        """Whether a sample in this place would be kept, as far as its size is no matter."""
        if self.bound is not None and order > self.bound:
            return False
        return len(self.kept) < KEPT or order < self.kept[-1].order

    def _keep(self, sample: "Kept") -> None:
        if not self._wanted(sample.order):
            return
        self.kept.append(sample)
        self.kept.sort(key=lambda each: each.order)
        del self.kept[KEPT:]
        # Without the bound a smaller one that comes later would be kept, an earlier one not.
        while len(self.kept) > 1 and sum(each.nbytes for each in self.kept) > self._memory:
            self._lower(self.kept.pop().order)

    def _lower(self, bound: "Order | None") -> None:
        if bound is not None and (self.bound is None or bound < self.bound):
            self.bound = bound
            self.kept = [each for each in self.kept if each.order <= bound]


@dataclass(frozen=True)
class Kept:
    """A sample that is kept.

    Attributes:
        held: Whether it is held back.
        number: Its hash.
        feeds: The sample.
    """

    held: bool
    number: int
    feeds: dict[str, NDArray[Any]]

    @property
    def order(self) -> Order:
        """Those held back come first."""
        return not self.held, self.number

    @property
    def nbytes(self) -> int:
        """Its size."""
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
