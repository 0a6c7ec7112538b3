"""Split what can be read only once: one reading dealt to two sides."""

from collections import deque
from collections.abc import Callable, Iterator

from qgraph.data import limits
from qgraph.data.inputs import Sample
from qgraph.data.reader import Reader
from qgraph.data.selection import Rule, Stage
from qgraph.errors import DataError


class OnePass:
    """Deals the samples of one reading to two sides, keeping what a side hasn't asked for yet."""

    def __init__(self, samples: Iterator[Sample], rule: Rule, where: str) -> None:
        """Keep the samples, which aren't read yet, and how to deal them."""
        self._samples, self._rule, self._where = samples, rule, where
        self._position = self._bytes = 0
        self.held: list[Sample] = []
        self._rest: deque[Sample] = deque()
        self._failed: DataError | None = None

    def advance(self) -> bool:
        """Read one more sample to its side; False at the end.

        Raises:
            DataError: More would have to be kept than memory allows, or reading failed, now or
                earlier: a side must not look complete because the other met the error first.
        """
        if self._failed is not None:
            raise self._failed
        try:
            sample = next(self._samples, None)
        except DataError as error:
            self._failed = error
            raise
        if sample is None:
            return False
        (self.held if self._rule.holds_out(self._position) else self._rest).append(sample)
        self._position += 1
        self._bytes += _nbytes(sample)
        if self._bytes > limits.buffer_bytes():
            raise DataError(
                f"splitting it keeps more than {limits.readable(limits.buffer_bytes())} in memory",
                where=self._where,
                fix="save the samples as .npz, hold out fewer, or read the calibration part first",
            )
        return True

    def flow(self) -> Iterator[Sample]:
        """Give the samples of the calibration side and forget them."""
        while self._rest or self.advance():
            if self._rest:
                sample = self._rest.popleft()
                self._bytes -= _nbytes(sample)
                yield sample

    def keep(self) -> Iterator[Sample]:
        """Give the samples held out; they stay in memory."""
        index = 0
        while index < len(self.held) or self.advance():
            if index < len(self.held):
                yield self.held[index]
                index += 1


class OnePassSide(Reader):
    """One side of a split one-pass source: the calibration side reads once, the other is kept."""

    def __init__(self, dealer: OnePass, parent: Reader, stage: Stage) -> None:
        """Share the dealer with the other side."""
        self._dealer, self._parent, self._stage = dealer, parent, stage
        self.source, self.layout = parent.source, parent.layout
        self.rereadable = stage.held
        self._used = False

    def read(self, take: Callable[[], bool]) -> Iterator[Sample]:
        """Give the side's samples, reading on as needed."""
        if self._used and not self.rereadable:
            raise DataError(
                "can be read only once and has been read",
                where=self.source.where,
                fix="give a list, or a function that makes a new generator",
            )
        self._used = True
        stream = self._dealer.keep() if self.rereadable else self._dealer.flow()
        for sample in stream:
            if take():
                yield sample

    def digest(self, *, read: bool) -> str | None:
        """Return the hash of the whole source, None until it was read to its end."""
        return self._parent.digest(read=read)

    @property
    def choice(self) -> str:
        """The choice before the split, and the side."""
        return f"{self._parent.choice} {self._stage}"


def _nbytes(sample: Sample) -> int:
    return sum(array.nbytes for arrays in sample for array in arrays.values())
