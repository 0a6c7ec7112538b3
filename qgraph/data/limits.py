"""How much an untrusted data file may ask for before it is refused."""

import os

GIB = 1 << 30

MAX_PB_BYTES = 2 * GIB - 1
"""Largest TensorProto file, bytes: protobuf's own limit for one message."""

MAX_PIXELS = 64_000_000
"""Largest image, pixels, before and after resizing."""

MAX_INFLATION = 100
"""Largest uncompressed to compressed ratio of a big `.npz` member."""

INFLATION_FREE_BYTES = 256 << 20
"""Members up to this size, bytes, may inflate by any ratio: all-zero arrays do so honestly."""

MAX_FOLDER_DEPTH = 16
"""Deepest nesting of folders that is searched for data files."""

MAX_FOLDER_ENTRIES = 2_000_000
"""Most folder entries looked at."""

UNBOUNDED_SAMPLES = 512
"""Samples taken from a source of unknown length when no number was asked for."""


def memory_bytes() -> int:
    """Return half of this machine's physical memory, bytes: the most that one array may take."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return 4 * GIB


def buffer_bytes() -> int:
    """Return the most, bytes, that splitting a one-pass source may keep in memory."""
    return min(2 * GIB, memory_bytes() // 2)


def readable(count: int) -> str:
    """Return a number of bytes as people write it, `1.5 GiB`."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"
