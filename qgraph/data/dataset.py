"""The data of a compile: samples to iterate, in batches, split, and described for the manifest."""

import platform
from collections.abc import Iterable, Iterator
from typing import Any

from qgraph.data.digest import new_hash
from qgraph.data.inputs import Feeds, InputLayout, Sample
from qgraph.data.one_pass import OnePass, OnePassSide
from qgraph.data.reader import Reader, SourceReader, concatenate
from qgraph.data.selection import Rule, Stage, chooser, make_rule
from qgraph.errors import DataError, UsageError


class DataSet:
    """Samples that fit the model's inputs; made by `open_data`.

    Iterating gives one dict of arrays for each sample, with a batch axis of size 1, or of the
    size that the model fixes. Samples are read as they are asked for; arrays may be read-only.
    """

    def __init__(self, reader: Reader, stages: tuple[Stage, ...] = ()) -> None:
        """Wrap a reader; `stages` are the splits that led here."""
        self._reader, self._stages = reader, stages

    def __iter__(self) -> Iterator[Feeds]:
        """Give the samples in order, without labels."""
        return (sample.feeds for sample in self.labelled())

    def labelled(self) -> Iterator[Sample]:
        """Give the samples in order, with the labels that `open_data` was asked to read.

        Raises:
            DataError: A sample doesn't fit the model, there is none, or the source can be read
                only once and was read before.
        """
        empty = True
        for sample in self._reader.read(chooser(self._stages)):
            empty = False
            yield sample
        if empty:
            raise DataError("has no samples left on this side", where=self._reader.source.where)

    def batches(self, size: int) -> Iterator[Feeds]:
        """Give samples put together along the batch axis, up to `size` in each, in order.

        Neighbours of different shape are not put together. Models that fix their batch size, or
        whose inputs have no common batch axis, get one sample at a time.

        Raises:
            UsageError: `size` is below 1.
            DataError: As when iterating.
        """
        if size < 1:
            raise UsageError(f"batch size {size} is below 1")
        return self._batches(size if self._reader.layout.free else 1)

    def split(self, held_out: float) -> tuple["DataSet", "DataSet"]:
        """Split into calibration samples and samples held out from it.

        The choice depends on nothing but the positions, so it is the same each time; no sample is
        on both sides. Samples are held out evenly over the data. Where the number of samples
        isn't known, every k-th is held out, starting with the second; an integer is then the most
        that are. A source that can be read only once is read once for both sides: what is held
        out stays in memory, and reading it first keeps the calibration samples there too.

        Args:
            held_out: A fraction of the samples (float) or their number (int).

        Returns:
            The calibration set and the set held out.

        Raises:
            UsageError: A fraction or number out of range.
            DataError: Too few samples.
        """
        where = self._reader.source.where
        rule = make_rule(held_out, self.count, self.expected, where)
        calibration, held = Stage(rule, held=False), Stage(rule, held=True)
        if self.rereadable:
            return (
                DataSet(self._reader, (*self._stages, calibration)),
                DataSet(self._reader, (*self._stages, held)),
            )
        dealer = OnePass(self.labelled(), rule, where)
        return (
            DataSet(OnePassSide(dealer, self._reader, calibration)),
            DataSet(OnePassSide(dealer, self._reader, held)),
        )

    def picked(self, positions: Iterable[int]) -> "DataSet":
        """Return the samples at some positions, counted from 0, in order; others stay unread.

        The set must be rereadable.
        """
        rule = Rule(held=frozenset(positions))
        return DataSet(self._reader, (*self._stages, Stage(rule, held=True)))

    def restored(self, stages: tuple[Stage, ...], digest: str | None) -> "DataSet":
        """Return the choice of samples that a pickled set had, if the content is still the same.

        Raises:
            DataError: It is not.
        """
        if self._reader.digest(read=False) != digest:
            raise DataError(
                f"is not what it is where the work was given out (here: {platform.node()})",
                where=self.where,
                fix="leave the data as it is while it is read, and give all machines the same",
            )
        return DataSet(self._reader, stages)

    @property
    def portable(self) -> bool:
        """Whether it can be pickled: it lies in files, which another process opens again."""
        return self._reader.origin is not None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the place, the choice of samples and a hash of the content."""
        from qgraph.data.opening import reopened

        if self._reader.origin is None:
            raise DataError(
                "can't be opened by another process", where=self.where, fix="give files"
            )
        return reopened, (self._reader.origin, self._stages, self._reader.digest(read=False))

    @property
    def count(self) -> int | None:
        """Number of samples, None where it isn't known before reading."""
        return self._counted(self._reader.count)

    @property
    def expected(self) -> int | None:
        """The most samples there may be, for progress; None where that isn't known either."""
        return self._counted(self._reader.expected)

    @property
    def rereadable(self) -> bool:
        """Whether the samples can be iterated more than once."""
        return self._reader.rereadable

    @property
    def where(self) -> str:
        """The source's path or name, for messages."""
        return self._reader.source.where

    @property
    def random(self) -> bool:
        """Whether the values are random, and so say nothing about accuracy."""
        return self._reader.source.random

    @property
    def layout(self) -> InputLayout:
        """The model's inputs as the data is fitted to them."""
        return self._reader.layout

    def fingerprint(self) -> str | None:
        """Return a hash of the samples' content, the model's inputs and the choice of samples.

        It doesn't depend on where the data lies. Files are hashed as they lie on disk, not value
        by value, so the same values in another format have another fingerprint.

        Returns:
            32 hexadecimal digits; None for a source that is read once and wasn't read yet.
        """
        return self._fingerprint(read=True)

    def key(self) -> str | None:
        """Return a hash like `fingerprint`, but of every byte, for keys of cached results.

        Returns:
            32 hexadecimal digits; None for functions, generators and loaders: what they give is
            known only by running them.
        """
        content = self._reader.key()
        return None if content is None else self._hash(content)

    def describe(self) -> dict[str, Any]:
        """Return what the manifest records; JSON-able.

        `samples` and `fingerprint` are None where they aren't known before reading; for functions
        and iterables, `fingerprint` is there once they were read to their end.
        """
        source = self._reader.source
        facts = {
            "kind": source.kind,
            "source": source.where,
            "samples": self.count,
            "fingerprint": self._fingerprint(read=False),
            "random": source.random,
        }
        unused = self._reader.unused_rows if isinstance(self._reader, SourceReader) else 0
        return facts | source.describe() | ({"unused_rows": unused} if unused else {})

    def _batches(self, size: int) -> Iterator[Feeds]:
        waiting: list[Feeds] = []
        where = self._reader.source.where
        for sample in self:
            full = len(waiting) == size
            if waiting and (full or _shapes(sample) != _shapes(waiting[0])):
                yield concatenate(waiting, where)
                waiting = []
            waiting.append(sample)
        if waiting:
            yield concatenate(waiting, where)

    def _fingerprint(self, *, read: bool) -> str | None:
        content = self._reader.digest(read=read)
        return None if content is None else self._hash(content)

    def _hash(self, content: str) -> str:
        choice = [self._reader.choice, *map(str, self._stages), *map(str, self.layout.inputs)]
        choice += [each.images.model_dump_json() for each in self.layout.inputs if each.images]
        hasher = new_hash()
        hasher.update("\n".join([content, *choice]).encode())
        return hasher.hexdigest()

    def _counted(self, total: int | None) -> int | None:
        for stage in self._stages:
            total = None if total is None else stage.count(total)
        return total


def _shapes(feeds: Feeds) -> list[tuple[int, ...]]:
    return [array.shape[1:] for array in feeds.values()]
