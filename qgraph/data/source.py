"""What a source of data is: items in a fixed order, each read when it is asked for."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Item = Mapping[str, Any]
"""An array-like for each input name; under other names, labels."""


class Pending(NamedTuple):
    """An item that is not read yet.

    Attributes:
        where: File and sample, for messages.
        load: Reads it. Valid until the next item is asked for.
    """

    where: str
    load: Callable[[], Item]


class Source:
    """Base of all sources: a folder, a file, arrays, a function.

    Attributes:
        kind: One word for the manifest: `npz`, `npy`, `images`, `files`, `function`, ...
        where: Path or name, for messages and the manifest.
        rereadable: Whether `items` may be called again.
        random: Whether the values are random instead of data.
        hashed_by_reading: Whether only reading all items gives a hash of the content.
        rows_per_item: Rows in every item where that is known without reading, else None.
    """

    kind = ""
    where = ""
    rereadable = True
    random = False
    hashed_by_reading = False
    rows_per_item: int | None = None

    def items(self) -> Iterator[Pending]:
        """Give the items in order."""
        raise NotImplementedError

    @property
    def count(self) -> int | None:
        """Number of items, None where it is not known before reading."""
        return None

    def digest(self) -> str:
        """Return a hash of the content; not asked for where `hashed_by_reading`."""
        raise NotImplementedError

    def key(self) -> str | None:
        """Return a hash in which every byte of the content counts, for keys of cached results.

        None where it would take running the user's code. May take a reading of all files.
        """
        return None if self.hashed_by_reading else self.digest()

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says beyond kind, place and count; JSON-able."""
        return {}
