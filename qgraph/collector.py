"""Python's garbage collector, out of the way while graphs are made and rewritten."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the collector while many linked objects are made.

    Nodes and values point at each other, so every full collection walks the whole graph and finds
    nothing to free: reading 50,000 nodes took 3.0 s with the collector and 1.1 s without.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
