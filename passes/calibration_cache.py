"""Ranges found by calibration, kept under a key of model, data and options."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from qgraph import __version__
from qgraph.cache import Cache, Entry
from qgraph.data import DataSet
from qgraph.encoding import Spec
from qgraph.fingerprint import Fingerprints
from qgraph.graph import Graph

KIND = "calibration"
Ranges = dict[str, tuple[float, float]]
# Packages that decide what values a model has and how data is read.
_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "pillow")
# Files of the package whose code decides a result.
_CODE = ("calibrat*.py", "collect*.py", "observers/*.py")


def graph_key(graph: Graph, names: Iterable[str] = ()) -> str:
    """Return a hash of what a graph computes: structure and weights, whatever its nodes' names.

    Args:
        graph: The graph.
        names: Values whose names and meaning count as well.

    Returns:
        32 hexadecimal digits.
    """
    prints = Fingerprints(graph)
    values = {
        v.name: v for v in [*graph.main.inputs, *(o for n in graph.nodes() for o in n.outputs)]
    }
    hasher = hashlib.blake2b(digest_size=16)
    hasher.update(f"opset {graph.opset}\n".encode())
    for value in graph.outputs:
        hasher.update(prints.value(value))
    for name in sorted(names):
        hasher.update(f"\n{name}\0".encode("utf-8", "surrogateescape"))
        hasher.update(prints.value(values[name]))
    return hasher.hexdigest()


def data_key(data: Any) -> str | None:
    """Return a hash of the samples, or None where only reading them could tell what they are."""
    return data.key() if isinstance(data, DataSet) else None


def data_place(data: Any) -> str:
    """Return where the samples come from, as far as that is known without reading them."""
    return str(data.describe()["source"]) if isinstance(data, DataSet) else ""


def calibration_key(
    graph: Graph, specs: Mapping[str, Spec], options: Mapping[str, Any], data: str
) -> str:
    """Return the key of a calibration's result.

    Everything that a range depends on is in it: what the observed values and the model's outputs
    compute, their specs, the observer's options, the data, the versions of packages, and the
    code of the observers themselves.
    """
    versions = {name: _version(name) for name in _PACKAGES}
    listed = [f"{name}: {spec}" for name, spec in sorted(specs.items())]
    chosen = sorted(options.items())
    parts = [
        __version__,
        code_digest(_CODE),
        versions,
        graph_key(graph, specs),
        listed,
        chosen,
        data,
    ]
    return "\n".join(map(repr, parts))


def load_ranges(store: Cache, key: str, names: Sequence[str]) -> tuple[Ranges, list[str]] | None:
    """Return cached ranges of all `names` and the lines of the report, or None."""
    entry = store.get(KIND, key)
    if entry is None:
        return None
    found = _ranges(entry, names)
    if found is None:
        store.drop(KIND, key)
    return found


def keep_ranges(store: Cache, key: str, ranges: Ranges, lines: Sequence[str]) -> str | None:
    """Keep ranges and the report's lines; return why that failed, or None."""
    names = sorted(ranges)
    values = np.array([ranges[name] for name in names], np.float64).reshape(-1, 2)
    return store.put(KIND, key, {"names": names, "lines": list(lines)}, {"ranges": values})


def _ranges(entry: Entry, names: Sequence[str]) -> tuple[Ranges, list[str]] | None:
    values, lines = entry.arrays.get("ranges"), entry.meta.get("lines")
    if (
        entry.meta.get("names") != sorted(names)
        or values is None
        or values.dtype != np.float64
        or values.shape != (len(names), 2)
        or not np.isfinite(values).all()
        or not isinstance(lines, list)
    ):
        return None
    pairs = zip(sorted(names), values.tolist(), strict=True)
    return {name: (low, high) for name, (low, high) in pairs}, [str(line) for line in lines]


@cache
def code_digest(patterns: tuple[str, ...]) -> str:
    """Hash of the code that decides a result, so that a changed checkout starts anew.

    Args:
        patterns: Globs of files in this folder; `encoding.py` always counts.
    """
    here = Path(__file__).resolve().parent
    files = [here.parent / "qgraph" / "encoding.py", here.parent / "encoding.py"]
    for pattern in patterns:
        files += sorted(here.glob(pattern))
    hasher = hashlib.blake2b(digest_size=16)
    for file in files:
        if file.is_file():
            hasher.update(file.read_bytes())
    return hasher.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
