"""Measured kernel times, kept in the user's cache and used again by later builds."""

from typing import Any

import numpy as np

from qgraph.cache import open_cache
from qgraph.runtime.tensorrt.device import Device
from qgraph.runtime.tensorrt.library import Library

_KIND = "tensorrt-timing"


def load_timings(library: Library, config: Any, device: Device | None) -> None:
    """Give a build the times that earlier ones measured with this library on this kind of GPU."""
    cache = open_cache()
    entry = None if cache is None else cache.get(_KIND, _key(library, device))
    kept = entry.arrays["timings"].tobytes() if entry and "timings" in entry.arrays else b""
    timings = config.create_timing_cache(kept)
    if timings is None and kept:  # of another build of the library: begin anew
        timings = config.create_timing_cache(b"")
    if timings is not None:
        config.set_timing_cache(timings, False)


def keep_timings(library: Library, config: Any, device: Device | None) -> None:
    """Keep what a build has measured, with what it was given."""
    cache, timings = open_cache(), config.get_timing_cache()
    if cache is None or timings is None:
        return
    data = np.frombuffer(bytes(timings.serialize()), np.uint8)
    cache.put(_KIND, _key(library, device), {"library": str(library)}, {"timings": data})


def _key(library: Library, device: Device | None) -> str:
    return f"{library} on {device.name if device else 'no GPU'}"
