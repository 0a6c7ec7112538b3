"""Requests of any length along the batch axis, for models that take only some.

Servers join requests of several clients as they come in; this only cuts, pads and joins what one caller has.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qgraph.errors import DataError, EngineError, UsageError
from qgraph.runtime.backend import Session, TensorInfo
from qgraph.runtime.tensors import Array, to_host
from qgraph.runtime.wrapped import Wrapped


class Batched(Wrapped):
    """A session that takes any number of rows.

    Batched inputs are those whose first axis is the first input's: the same symbol, or the same
    length. A model with a free batch axis gets at most `size` rows at a time; one with a fixed batch
    gets exactly that many, the last of them repeated where there are too few. All other
    inputs are passed on as they are.
    """

    def __init__(self, session: Session, size: int | None = None) -> None:
        """Wrap an open session.

        Args:
            session: It, closed with this one.
            size: Most rows at a time; None for the model's fixed batch, or any number.

        Raises:
            UsageError: The inputs have no batch axis, or it is fixed to another length than `size`.
        """
        super().__init__(session)
        self._batched = batched_inputs(session.inputs)
        if not self._batched:
            raise UsageError("the model's inputs have no batch axis", fix="run it without batching")
        first = self._batched[0].shape[0]
        self._fixed = isinstance(first, int)
        if size is not None and (size < 1 or (self._fixed and size != first)):
            raise UsageError(
                f"batches of {size} rows do not fit {self._batched[0]}",
                fix=f"use {first}" if self._fixed else "give 1 or more",
            )
        self._size = int(first) if isinstance(first, int) else size
        names = {info.name for info in self._batched}
        self.inputs = tuple(_any_length(i) if i.name in names else i for i in session.inputs)
        self.outputs = tuple(
            _any_length(info) if info.shape[:1] == (first,) else info for info in session.outputs
        )

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run on any number of rows, cut and padded as the model needs, and join the results.

        Raises:
            DataError: Batched inputs differ in length, or are empty where the batch is fixed.
            EngineError: An output does not have a row for every row of the input.
        """
        rows = self._rows(feeds)
        if rows == self._size or (not self._fixed and (self._size is None or rows < self._size)):
            return self._session.run(feeds, outputs)
        parts = [self._part(part, count, outputs) for part, count in self._cut(dict(feeds), rows)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def run_many(
        self, requests: Sequence[Mapping[str, Any]], outputs: Sequence[str] | None = None
    ) -> list[dict[str, Array]]:
        """Join requests along the batch axis, run them, and give each its own results.

        Args:
            requests: Feeds; inputs that are not batched must be equal in all of them.
            outputs: Names of the outputs wanted.

        Raises:
            DataError: Their shapes or other inputs differ.
            EngineError: An output does not have a row for every row of the input.
        """
        if not requests:
            return []
        counts = [self._rows(request) for request in requests]
        joined = {name: self._join(name, requests) for name in requests[0]}
        results = self.run(joined, outputs)
        for name, array in results.items():
            self._check_rows(name, array, sum(counts))
        ends = np.cumsum(counts)[:-1]
        pieces = {name: np.split(array, ends) for name, array in results.items()}
        return [{name: split[i] for name, split in pieces.items()} for i in range(len(requests))]

    def _rows(self, feeds: Mapping[str, Any]) -> int:
        lengths = {
            info.name: len(to_host(info.name, feeds[info.name]))
            for info in self._batched
            if info.name in feeds
        }
        if len(set(lengths.values())) != 1:
            listed = ", ".join(f"{name} {count}" for name, count in lengths.items()) or "none"
            raise DataError(f"batched inputs differ in length: {listed}", fix="feed equal lengths")
        rows = next(iter(lengths.values()))
        if not rows and self._fixed:
            raise DataError("no rows to run", where=self.engine, fix="feed at least one")
        return rows

    def _cut(self, feeds: dict[str, Any], rows: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Feeds of one run after the other, and how many of their rows count."""
        size = self._size or rows
        for start in range(0, rows, size):
            part = dict(feeds)
            for info in self._batched:
                array = to_host(info.name, feeds[info.name])[start : start + size]
                missing = size - len(array) if self._fixed else 0
                part[info.name] = np.concatenate([array, np.repeat(array[-1:], missing, 0)])
            yield part, min(size, rows - start)

    def _part(
        self, feeds: Mapping[str, Any], count: int, outputs: Sequence[str] | None
    ) -> dict[str, Array]:
        rows = self._rows(feeds)
        found = self._session.run(feeds, outputs)
        for name, array in found.items():
            self._check_rows(name, array, rows)
        return {name: array[:count] for name, array in found.items()}

    def _check_rows(self, name: str, array: Array, rows: int) -> None:
        if not array.ndim or len(array) != rows:
            raise EngineError(
                f"output {name!r} has shape {list(array.shape)} for {rows} rows: it can't be split",
                where=self.engine,
                fix="ask for other outputs by name",
            )

    def _join(self, name: str, requests: Sequence[Mapping[str, Any]]) -> Array:
        where = f"input {name!r}"
        try:
            arrays = [to_host(name, request[name]) for request in requests]
        except KeyError as error:
            raise DataError("missing from a request", where=where, fix="feed it in all") from error
        if name not in {info.name for info in self._batched}:
            if any(not np.array_equal(arrays[0], other) for other in arrays[1:]):
                raise DataError(
                    "differs between requests and has no batch axis",
                    where=where,
                    fix="run them one by one",
                )
            return arrays[0]
        if len({(array.dtype, array.shape[1:]) for array in arrays}) != 1:
            raise DataError("requests differ in type or shape", where=where, fix="pad them")
        return np.concatenate(arrays)


def batched_inputs(inputs: Sequence[TensorInfo]) -> tuple[TensorInfo, ...]:
    """Inputs that share the first one's first axis; none where that has no axes.

    An unnamed axis is only the first input's own.
    """
    ranked = [info for info in inputs if info.shape]
    if not ranked:
        return ()
    first = ranked[0]
    same = [info for info in ranked[1:] if info.shape[0] == first.shape[0] is not None]
    return (first, *same)


def _any_length(info: TensorInfo) -> TensorInfo:
    return TensorInfo(info.name, info.dtype, ("batch", *info.shape[1:]))
