"""Runs one recipe and prints what it took as JSON; needs numpy and the recipe's package, no more.

    PYTHON_OF_ENVIRONMENT run.py PEER RECIPE MODEL.onnx FEEDS.npz OUTPUT.onnx

FEEDS.npz holds one array for each sample and input, named `NUMBER/INPUT`. The clock runs from the
model file to the quantized file, imports left out; peak memory is that of this whole process,
imports and samples included, or of a child if that took more.
"""

import importlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, np.ndarray[Any, Any]]


def main() -> int:
    """Print a JSON object: seconds, cpu_seconds, peak_mb, note."""
    peer, recipe, *paths = sys.argv[1:]
    model, data, output = (Path(path) for path in paths)
    quantize = importlib.import_module(f"with_{peer}").prepare(recipe)
    feeds = load(data)
    start, cpu = time.perf_counter(), time.process_time()
    note = quantize(model, feeds, output)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = max(_peak_mb(), _maxrss_mb(resource.RUSAGE_CHILDREN))
    found = {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak, "note": note}
    print("\n" + json.dumps(found))
    return 0


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        return _maxrss_mb(resource.RUSAGE_SELF)
    # ru_maxrss would do, but it starts at the size of the process that started this one.
    found = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(next(found).split()[1]) / 1024


def _maxrss_mb(who: int) -> float:
    # In kilobytes on Linux and in bytes on macOS.
    return resource.getrusage(who).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def save(feeds: list[Feeds], path: Path) -> None:
    """Write samples as `load` reads them; the names of inputs may hold any character."""
    flat = {
        f"{i:06d}/{name}": array for i, each in enumerate(feeds) for name, array in each.items()
    }
    np.savez(path, **flat)  # type: ignore[arg-type]


def load(path: Path) -> list[Feeds]:
    """Read the samples, in order."""
    feeds: dict[str, Feeds] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            number, _, name = key.partition("/")
            feeds.setdefault(number, {})[name] = arrays[key]
    return [feeds[number] for number in sorted(feeds)]


if __name__ == "__main__":
    sys.exit(main())
