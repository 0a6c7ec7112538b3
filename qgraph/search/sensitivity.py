"""How much each unit loses in each precision, alone: measured at the outputs, kept, resumed.

Of a model with more units than `MOST`, so many, evenly spread, are carried to the outputs; of the
others the error of their own results is measured, and multiplied by the gain from there to the
outputs that the units around them have (Zhou et al. 2018, "Adaptive quantization for deep neural
network", section 3: noise that is small passes through the rest of a network as through a linear
map, and energies add up).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qgraph.cache import Cache, Entry
from qgraph.data.inputs import Sample
from qgraph.metrics.metric import Metric
from qgraph.runtime.backend import available_cores
from qgraph.search.probes import READ, WRITTEN, Kind
from qgraph.search.segments import read_segments
from qgraph.search.sweep import Batch, Found, Probe, Task, sweep
from qgraph.search.tasks import Executor, run_tasks

KIND = "sensitivity"
MOST = 96
# Error energies below this part of the signal are not told apart.
LEAST = 1e-12
_BATCH = 4
# Samples of a task. Sums of floats depend on how they are grouped, so this depends on no machine.
_SHARE = 4


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What each unit loses in another precision while all others are in float.

    Attributes:
        losses: By kind of error, the error energy of the outputs relative to their signal, float64
            [units]; NaN where the unit can't make that error.
        drops: By kind, by how much the score gets worse, float64 [units]; NaN where that is not
            known, None without a metric.
        carried: Whether losses were measured at the outputs, bool [units]; else they are estimated.
        samples: Number of samples.
    """

    losses: dict[Kind, NDArray[np.float64]]
    drops: dict[Kind, NDArray[np.float64]] | None
    carried: NDArray[np.bool_]
    samples: int

    @property
    def loss(self) -> NDArray[np.float64]:
        """What units in integers lose; 0 where they can't be."""
        return self._of(READ)

    @property
    def written(self) -> NDArray[np.float64]:
        """The same where a unit's result alone becomes codes."""
        return self._of(WRITTEN)

    @property
    def drop(self) -> NDArray[np.float64] | None:
        """By how much the score gets worse by a unit in integers."""
        empty = np.full(len(self.carried), np.nan)
        return None if self.drops is None else self.drops.get(READ, empty)

    @property
    def sqnr(self) -> NDArray[np.float64]:
        """Signal to noise ratio of the outputs with units in integers, dB, float64 [units]."""
        return -10 * np.log10(np.maximum(self.loss, LEAST))

    def of(self, kind: Kind, unit: int) -> float | None:
        """Return what a unit loses by one kind of error; None where it can't make it."""
        found = self.losses.get(kind)
        if found is None or np.isnan(found[unit]):
            return None
        return float(found[unit])

    def _of(self, kind: Kind) -> NDArray[np.float64]:
        empty = np.zeros(len(self.carried))
        return np.nan_to_num(self.losses.get(kind, empty), posinf=np.inf)


def measure(
    folder: Path,
    samples: Sequence[Sample],
    *,
    metric: Metric | None = None,
    together: bool = False,
    sample_bytes: float = 0.0,
    memory: int = 512 << 20,
    store: Cache | None = None,
    run: Executor = run_tasks,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sensitivity:
    """Run the sweep over all samples, a share at a time.

    Args:
        folder: Segments, from `write_segments`.
        samples: The samples, with labels where the metric reads them.
        metric: The user's metric; None where it can't be had of one sample's outputs.
        together: Whether samples of equal shapes can be put together along the batch axis.
        sample_bytes: What the sweep holds for one sample.
        memory: Bytes that all shares that run at once may hold.
        store: Where results are kept; None keeps none.
        run: What runs the shares.
        progress: Told how many shares are done.
    """
    segments = read_segments(folder)
    count = sum(segment.unit >= 0 for segment in segments.parts)
    chosen = set(_spread(count, MOST))
    every = [(s.unit, kind) for s in segments.parts for kind in s.probes]
    carried = tuple(probe for probe in every if probe[0] in chosen)
    nearby = tuple(probe for probe in every if probe[0] not in chosen)
    batches = batched(samples, _BATCH if together else 1)
    # As many shares as cores work at once.
    most = memory / available_cores() / max(sample_bytes, 1.0)
    rows = max(1, int(min(most, _SHARE)))
    tasks = [Task(str(folder), share, carried, nearby, metric) for share in _shares(batches, rows)]
    content = _content(folder)
    keys = [_key(task, content) for task in tasks]
    known = [_load(store, key) for key in keys]
    missing = [task for task, found in zip(tasks, known, strict=True) if found is None]
    fresh = run(sweep, missing)
    found: list[Found] = []
    for key, old in zip(keys, known, strict=True):
        new = next(fresh) if old is None else old
        if old is None and store is not None:
            _keep(store, key, new)
        found.append(new)
        progress(len(found), len(tasks))
    return summed(found, count, carried, nearby, metric, len(samples))


def summed(
    found: Sequence[Found],
    count: int,
    carried: Sequence[Probe],
    nearby: Sequence[Probe],
    metric: Metric | None,
    samples: int,
) -> Sensitivity:
    """Put the results of all shares together, in order."""
    noise = np.sum([each.noise for each in found], axis=0)
    signal = np.sum([each.signal for each in found], axis=0)
    local = np.sum([each.local for each in found], axis=0)
    losses = (noise / np.maximum(signal, 1e-300)).mean(axis=1)
    own = local[:, 0] / np.maximum(local[:, 1], 1e-300)
    every = [kind for _, kind in (*carried, *nearby)]
    by_kind: dict[Kind, NDArray[np.float64]] = {
        kind: np.full(count, np.nan) for kind in dict.fromkeys(every)
    }
    for kind, loss in by_kind.items():
        rows = [row for row, probe in enumerate(carried) if probe[1] == kind]
        units = [carried[row][0] for row in rows]
        loss[units] = losses[rows]
        known = [row for row in rows if np.isfinite(losses[row]) and np.isfinite(own[row])]
        gain = np.log(np.maximum(losses[known], LEAST) / np.maximum(own[known], LEAST))
        for row, (unit, other) in enumerate(nearby, len(carried)):
            if other == kind and known:
                at = [carried[row][0] for row in known]
                loss[unit] = own[row] * np.exp(np.interp(unit, at, gain))
    drops = None
    if metric is not None:
        sign = 1 if metric.better == "higher" else -1
        plain = metric.score(np.concatenate([e.plain for e in found if e.plain is not None]))
        drops = {kind: np.full(count, np.nan) for kind in by_kind}
        for row, (unit, kind) in enumerate(carried):
            score = metric.score(np.concatenate([each.rows[row] for each in found]))
            drops[kind][unit] = sign * (plain - score)
    measured = np.zeros(count, np.bool_)
    measured[[unit for unit, _ in carried]] = True
    return Sensitivity(by_kind, drops, measured, samples)


def batched(samples: Sequence[Sample], size: int) -> list[Batch]:
    """Put neighbours of equal shapes together, up to `size` samples in each batch."""
    groups: list[list[Sample]] = []
    for sample in samples:
        full = not groups or len(groups[-1]) == size
        if full or _shapes(groups[-1][0]) != _shapes(sample):
            groups.append([])
        groups[-1].append(sample)
    return [
        Batch(
            {name: np.concatenate([s.feeds[name] for s in group]) for name in group[0].feeds},
            {name: np.concatenate([s.labels[name] for s in group]) for name in group[0].labels},
        )
        if len(group) > 1
        else Batch(dict(group[0].feeds), dict(group[0].labels))
        for group in groups
    ]


def _shapes(sample: Sample) -> list[tuple[int, ...]]:
    return [array.shape[1:] for side in sample for array in side.values()]


def _spread(count: int, most: int) -> tuple[int, ...]:
    """At most so many of `range(count)`, both ends among them."""
    if count <= most:
        return tuple(range(count))
    return tuple(sorted({round(x) for x in np.linspace(0, count - 1, most)}))


def _shares(batches: Sequence[Batch], rows: int) -> list[tuple[Batch, ...]]:
    """Split into shares of at most so many samples, at least one batch in each."""
    shares: list[list[Batch]] = []
    held = 0
    for batch in batches:
        size = len(next(iter(batch.feeds.values())))
        if not shares or held + size > rows:
            shares.append([])
            held = 0
        shares[-1].append(batch)
        held += size
    return [tuple(share) for share in shares]


def _content(folder: Path) -> bytes:
    """Hash of all segments: what they compute, weights and encodings with it."""
    hasher = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.iterdir()):
        hasher.update(file.name.encode())
        hasher.update(file.read_bytes())
    return hasher.digest()


def _key(task: Task, content: bytes) -> str:
    hasher = hashlib.blake2b(content, digest_size=16)
    for batch in task.batches:
        for side in (batch.feeds, batch.labels):
            for name, array in side.items():
                hasher.update(f"{name} {array.dtype} {array.shape}\n".encode())
                hasher.update(array.tobytes())
    return f"{hasher.hexdigest()} {task.probes} {task.nearby} {task.metric}"


def _keep(store: Cache, key: str, found: Found) -> None:
    arrays = {"noise": found.noise, "signal": found.signal, "local": found.local}
    if found.plain is not None:
        arrays |= {"rows": np.array(found.rows), "plain": found.plain}
    store.put(KIND, key, {}, arrays)


def _load(store: Cache | None, key: str) -> Found | None:
    entry: Entry | None = None if store is None else store.get(KIND, key)
    if entry is None:
        return None
    arrays = entry.arrays
    rows = tuple(arrays["rows"]) if "rows" in arrays else ()
    return Found(arrays["noise"], arrays["signal"], arrays["local"], rows, arrays.get("plain"))
