"""From a source's items to the model's samples, and splitting what can be read only once."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.data.conform import conform
from qgraph.data.digest import new_hash, update_with
from qgraph.data.functions import IterableSource
from qgraph.data.inputs import Feeds, InputLayout, Sample
from qgraph.data.source import Pending, Source
from qgraph.errors import DataError


@dataclass(frozen=True)
class Origin:
    """What `open_data` was given, where that can be given again elsewhere.

    Attributes:
        source: A path, absolute, or `random:...`.
        arguments: The others, by name.
    """

    source: str
    arguments: Mapping[str, Any]


class Reader:
    """Gives samples in order, leaving out those that are not wanted.

    Attributes:
        rereadable: Whether `read` may be called again.
        source: Where the samples come from.
        layout: The model's inputs.
        origin: How to open it again in another process; None where that can't be done.
    """

    rereadable = True
    origin: "Origin | None" = None
    source: Source
    layout: InputLayout

    def read(self, take: Callable[[], bool]) -> Iterator[Sample]:
        """Give the samples for which `take`, called once for each in order, says yes."""
        raise NotImplementedError

    @property
    def count(self) -> int | None:
        """Number of samples before any are left out, None where it isn't known."""
        return None

    @property
    def expected(self) -> int | None:
        """The most samples there may be, None where that isn't known either."""
        return self.count

    def digest(self, *, read: bool) -> str | None:
        """Return a hash of the content; None where it takes a reading that isn't allowed.

        Args:
            read: Whether a rereadable source may be read through for it.
        """
        raise NotImplementedError

    def key(self) -> str | None:
        """Return a hash in which every byte counts; None where it takes running the user's code."""
        return None

    @property
    def choice(self) -> str:
        """What decides which of the source's samples are read."""
        raise NotImplementedError


class SourceReader(Reader):
    """Reads a source: checks every item, groups rows into samples, stops at the limit.

    Attributes:
        unused_rows: Rows at the end that didn't fill the model's fixed batch, once all were read.
    """

    def __init__(self, source: Source, layout: InputLayout, limit: int | None) -> None:
        """Set up; nothing is read.

        Args:
            source: Where the items come from.
            layout: The model's inputs.
            limit: The most rows to use; samples where the model fixes no batch size.
        """
        self.source, self.layout = source, layout
        self.rereadable = source.rereadable
        self._group = layout.batch if layout.uniform else 1
        self._limit = None if limit is None else max(1, limit // self._group)
        self.unused_rows = 0
        self._first: str | None = None
        self._all: str | None = None

    @property
    def count(self) -> int | None:
        """Number of samples; rows that don't fill the model's batch aren't counted."""
        items, rows = self.source.count, self.source.rows_per_item
        if items is None or rows is None:
            return None
        whole = items * rows // self._group
        return whole if self._limit is None else min(whole, self._limit)

    @property
    def expected(self) -> int | None:
        """The count, or else the limit."""
        return self._limit if self.count is None else self.count

    def read(self, take: Callable[[], bool]) -> Iterator[Sample]:
        """Give the wanted samples.

        Raises:
            DataError: An item that doesn't fit, no sample at all, or a source that gives other
                values than the first time.
        """
        # Hashed while it is read, a source is read whole each time: unwanted samples count too.
        hasher = new_hash() if self.source.hashed_by_reading else None
        given = 0
        for sample in self._samples(take if hasher is None else _always):
            given += 1
            if hasher is not None and sample is not None:
                update_with(hasher, sample.feeds)
                if given == 1:
                    self._first = self._same(self._first, hasher.hexdigest())
                sample = sample if take() else None
            if sample is not None:
                yield sample
            if given == self._limit:
                break
        if given == 0:
            again = " when it is read again" if self._first else ""
            few = f" (the model's batch is {self._group})" if self._group > 1 else ""
            raise DataError(f"gives no samples{again}{few}", where=self.source.where)
        if hasher is not None:
            self._all = self._same(self._all, hasher.hexdigest())

    def digest(self, *, read: bool) -> str | None:
        """Hash the content, or return the hash of an earlier reading."""
        if self._all is None and not self.source.hashed_by_reading:
            self._all = self.source.digest()
        elif self._all is None and self.rereadable and read:
            for _ in self.read(lambda: False):
                pass
        return self._all

    def key(self) -> str | None:
        """Hash every byte of the content."""
        if isinstance(self.source, IterableSource) and self.source.in_memory:
            return self.digest(read=True)
        return self.source.key()

    @property
    def choice(self) -> str:
        """The limit, unless the hash covers just what was read."""
        return "" if self.source.hashed_by_reading else f"limit={self._limit}"

    def _same(self, before: str | None, now: str) -> str:
        if before not in (None, now):
            raise DataError(
                "gives other samples than the first time it was read",
                where=self.source.where,
                fix="seed its random generator and switch shuffling off, or give a list",
            )
        return now

    def _samples(self, take: Callable[[], bool]) -> Iterator[Sample | None]:
        """Give the wanted samples, and None for each of the others."""
        if self.source.rows_per_item == 1:
            yield from self._by_count(take)
            return
        rows: list[Sample] = []
        for pending in self.source.items():
            for found in conform(pending.load(), self.layout, pending.where):
                whole = not self.layout.uniform or _rows(found.feeds) == self._group
                rows = rows if whole else [*rows, found]
                if whole or len(rows) == self._group:
                    sample = found if whole else _joined(rows, pending.where)
                    yield sample if take() else None
                    rows = rows if whole else []
        self.unused_rows = len(rows)

    def _by_count(self, take: Callable[[], bool]) -> Iterator[Sample | None]:
        """The same where each item is one row, so that unwanted items stay unread."""
        group: list[Pending] = []
        wanted, rows = False, list[Sample]()
        for pending in self.source.items():
            wanted = wanted if group else take()
            group.append(pending)
            if wanted:  # read at once: a pending item holds only until the next
                rows += conform(pending.load(), self.layout, pending.where)
            if len(group) == self._group:
                yield _joined(rows, pending.where) if wanted else None
                group, rows = [], []
        self.unused_rows = len(group)


def _always() -> bool:
    return True


def _rows(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))


def _joined(rows: list[Sample], where: str) -> Sample:
    """Put rows together to one sample of the model's batch size, with the labels all of them have."""
    shared = set.intersection(*(set(row.labels) for row in rows))
    labels = [{name: row.labels[name] for name in sorted(shared)} for row in rows]
    return Sample(concatenate([row.feeds for row in rows], where), concatenate(labels, where))


def concatenate(samples: list[Feeds], where: str) -> Feeds:
    """Put samples together along the first axis.

    Raises:
        DataError: They differ in shape.
    """
    if len(samples) == 1:
        return samples[0]
    joined: dict[str, NDArray[Any]] = {}
    for name in samples[0]:
        shapes = {sample[name].shape[1:] for sample in samples}
        if len(shapes) > 1:
            listed = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
            raise DataError(
                f"the samples of one batch differ in shape, {listed}",
                where=f"{where}, array {name!r}",
                fix="pad them to one length",
            )
        joined[name] = np.concatenate([sample[name] for sample in samples])
    return joined
