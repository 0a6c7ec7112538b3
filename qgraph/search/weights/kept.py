"""Keeps what was measured of layers, so that a search with another promise does not measure again."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qgraph import __version__
from qgraph.cache import Cache
from qgraph.data import Feeds
from qgraph.passes.calibration_cache import code_digest, graph_key
from qgraph.search.weights.losses import Losses
from qgraph.search.weights.space import WeightSpace

KIND = "weight-losses"
# Files of passes whose code decides a result.
_CODE = ("weights/*.py", "weight_only/*.py")


def key_of(space: WeightSpace, samples: Sequence[Feeds]) -> str:
    """Return what losses depend on: model, samples, ways to keep weights, and code."""
    hasher = hashlib.blake2b(digest_size=16)
    for feeds in samples:
        for name, array in feeds.items():
            hasher.update(f"{name} {array.dtype} {array.shape}\n".encode())
            hasher.update(np.ascontiguousarray(array).tobytes())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        hasher.update(file.read_bytes())
    ways = [(layer.name, kinds) for layer, kinds in zip(space.layers, space.kinds, strict=True)]
    how = {kind: space.settings(kind) for kinds in space.kinds for kind in kinds if kind.bits}
    parts = [__version__, code_digest(_CODE), graph_key(space.linear), hasher.hexdigest(), ways]
    return repr([*parts, sorted(how.items(), key=str), space.rounds_data])


def load(store: Cache | None, key: str, counts: Sequence[int]) -> Losses | None:
    """Return what is kept, or None.

    Args:
        store: The cache.
        key: See `key_of`.
        counts: For each layer, the number of its ways.
    """
    entry = None if store is None else store.get(KIND, key)
    if entry is None:
        return None
    ends = np.cumsum(counts)[:-1]
    arrays: Mapping[str, NDArray[np.float64]] = entry.arrays
    if any(len(array) != sum(counts) for array in arrays.values()):
        return None
    local, data, output, measured = (
        np.split(arrays[name], ends) for name in ("local", "data", "output", "measured")
    )
    flags = [each.astype(np.bool_) for each in measured]
    return Losses(local, data, output, flags, int(entry.meta.get("samples", 0)))


def keep(store: Cache | None, key: str, losses: Losses) -> None:
    """Keep what was measured."""
    if store is None:
        return
    arrays = {
        "local": np.concatenate(losses.local),
        "data": np.concatenate(losses.data),
        "output": np.concatenate(losses.output),
        "measured": np.concatenate(losses.measured).astype(np.float64),
    }
    store.put(KIND, key, {"samples": losses.samples}, arrays)
