"""Runs through data in slices of time with a checkpoint after each, and goes on from the last.

What was seen of the samples done so far is kept in the cache as the observers' state. Observers
take samples one by one, so a state that was saved and restored is the state that an uninterrupted
run has at that sample, to the bit.
"""

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from qgraph.cache import Cache
from qgraph.context import Context
from qgraph.data.digest import new_hash, update_with
from qgraph.errors import DataError
from qgraph.passes.calibration_state import Arrays, restore, state_of
from qgraph.passes.collect import Timing, sample_count

KIND = "checkpoint"
Feeds = Mapping[str, NDArray[Any]]
Progress = Callable[[str, int, int | None], None]
# (samples, number of the first, progress) -> what it took
Look = Callable[[Iterable[Feeds], int, Progress], Timing]


@dataclass
class Checkpoints:
    """Where checkpoints go.

    Attributes:
        store: The cache.
        key: Of this calibration; without its data where `hashed`.
        every: Seconds between two; 0 for one after each sample.
        hashed: Whether the key does not cover the data, so that a hash of the samples done is
            saved too, and compared with what is read again.
    """

    store: Cache
    key: str
    every: float
    hashed: bool


def look_through(
    data: Iterable[Feeds],
    look: Look,
    watchers: MutableMapping[str, Any],
    checkpoints: Checkpoints | None,
    context: Context,
) -> tuple[Timing, int]:
    """Show all samples to `look`, which feeds the watchers, with a checkpoint now and then.

    Args:
        data: The samples; without checkpoints they are read once or as often as `look` reads them.
        look: Called for each slice of the data.
        watchers: By name, dataclasses that hold all that was seen; replaced by those of a
            checkpoint where there is one.
        checkpoints: Where to keep them; None for none, as for data that can be read once only.
        context: Told about progress and, with -v, about a resumed run.

    Returns:
        Counts and times of this run, and how many samples an earlier run had done.

    Raises:
        DataError: There are no samples.
    """
    if checkpoints is None:
        return look(data, 0, context.progress), 0
    saved = _load(checkpoints, watchers)
    slices = _Slices(data, checkpoints.hashed)
    done = 0
    if saved is not None:
        if slices.skip(saved.done, saved.digest):
            watchers.update(saved.watchers)
            done = saved.done
            context.info(f"calibration goes on behind sample {done} of an interrupted run")
        else:
            slices = _Slices(data, checkpoints.hashed)
    resumed, timing = done, Timing()
    while slices.more():
        samples = slices.until(checkpoints.every)
        part = look(samples, done, _behind(context.progress, data, done))
        done += part.samples
        _add(timing, part)
        if samples.cut:
            _save(checkpoints, watchers, done, slices.digest, context)
    if done == 0:
        raise DataError("the calibration data has no samples")
    checkpoints.store.drop(KIND, checkpoints.key)
    return timing, resumed


@dataclass(frozen=True)
class _Saved:
    done: int
    digest: str
    watchers: dict[str, Any]


class _Slices:
    """Cuts data that can be read again into slices that can, too."""

    def __init__(self, data: Iterable[Feeds], hashed: bool) -> None:
        self._data = data
        self._hasher = new_hash() if hashed else None
        self._stream = iter(data)
        # At most one sample is read ahead, to know whether there is another slice.
        self._next: list[Feeds] = []
        self._taken = 0

    @property
    def digest(self) -> str:
        """Hash of all samples taken so far; empty where the key covers them."""
        return "" if self._hasher is None else self._hasher.hexdigest()

    def more(self) -> bool:
        """Whether there is another sample."""
        if not self._next:
            self._next = list(itertools.islice(self._stream, 1))
        return bool(self._next)

    def take(self) -> Feeds:
        """Return the next sample."""
        sample = self._next.pop()
        if self._hasher is not None:
            update_with(self._hasher, sample)
        self._taken += 1
        return sample

    def skip(self, count: int, digest: str) -> bool:
        """Read over the samples that were done; False if they are others."""
        while self._taken < count and self.more():
            self.take()
        return self._taken == count and self.digest == digest

    def until(self, seconds: float) -> "_Slice":
        """Return the samples that are asked for within `seconds` from now, at least one."""
        return _Slice(self, self._data, self._taken, time.monotonic() + seconds)


class _Slice:
    """Some samples: the first reading decides how many, later ones give the same again.

    Attributes:
        cut: Whether time ended it, and not the data.
    """

    rereadable = True

    def __init__(self, slices: _Slices, data: Iterable[Feeds], start: int, deadline: float) -> None:
        self._slices, self._data, self._start, self._deadline = slices, data, start, deadline
        self._count: int | None = None
        self.cut = False
        total = sample_count(data)
        self.expected = None if total is None else total - start

    def __iter__(self) -> Iterator[Feeds]:
        if self._count is not None:
            end = self._start + self._count
            yield from itertools.islice(self._data, self._start, end)
            return
        self._count = 0
        while True:
            # Asked before the next sample is read: reading it may be what breaks off.
            self.cut = self._count > 0 and time.monotonic() >= self._deadline
            if self.cut or not self._slices.more():
                return
            self._count += 1
            yield self._slices.take()


def _behind(progress: Progress, data: Iterable[Feeds], done: int) -> Progress:
    """Count from where this slice begins."""

    def tell(what: str, now: int, total: int | None) -> None:
        progress(what, done + now, None if total is None else done + total)

    return tell if done else progress


def _add(timing: Timing, part: Timing) -> None:
    timing.samples += part.samples
    timing.runs += part.runs
    timing.seconds += part.seconds
    timing.inference += part.inference
    timing.groups = max(timing.groups, part.groups)


def _save(
    where: Checkpoints, watchers: Mapping[str, Any], done: int, digest: str, context: Context
) -> None:
    names, arrays = sorted(watchers), Arrays()
    try:
        for index, name in enumerate(names):
            arrays |= {f"{index}/{key}": a for key, a in state_of(watchers[name]).items()}
    except TypeError as error:
        context.info(f"no checkpoint: {error}")
        return
    meta = {"names": names, "done": done, "digest": digest}
    reason = where.store.put(KIND, where.key, meta, arrays)
    if reason is not None:
        context.info(f"no checkpoint in {where.store.folder}: {reason}")


def _load(where: Checkpoints, watchers: Mapping[str, Any]) -> _Saved | None:
    """Return the samples done, their hash and the watchers as they were, if all of it fits."""
    entry = where.store.get(KIND, where.key)
    if entry is None:
        return None
    done, digest = entry.meta.get("done"), entry.meta.get("digest")
    if (
        entry.meta.get("names") == sorted(watchers)
        and isinstance(done, int)
        and done > 0
        and isinstance(digest, str)
    ):
        restored = {name: copy.deepcopy(watcher) for name, watcher in watchers.items()}
        try:
            _restore(restored, entry.arrays)
        except ValueError:
            pass
        else:
            return _Saved(done, digest, restored)
    where.store.drop(KIND, where.key)
    return None


def _restore(watchers: Mapping[str, Any], arrays: Arrays) -> None:
    by_index: dict[str, Arrays] = {}
    for key, array in arrays.items():
        index, _, name = key.partition("/")
        by_index.setdefault(index, Arrays())[name] = array
    for number, name in enumerate(sorted(watchers)):
        restore(watchers[name], by_index.get(str(number), {}))
