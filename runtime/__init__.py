"""Engines behind one `Session` protocol, and what compares and times them.

A new engine is one file with a class that satisfies `qgraph.runtime.backend.Backend`, one line in
`BACKENDS`, and one test file.
"""

from importlib import import_module

from qgraph.errors import unknown_name
from qgraph.runtime.backend import Backend

BACKENDS: tuple[str, ...] = (
    "qgraph.runtime.onnxruntime_cpu:OnnxRuntimeCpu",
    "qgraph.runtime.openvino:OpenVino",
)


def backends() -> dict[str, Backend]:
    """Every registered backend by name, usable here or not; imports no engine."""
    made = [_make(line) for line in BACKENDS]
    return {item.name: item for item in made}


def backend(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        UsageError: There is none of that name; the nearest one is suggested.
    """
    known = backends()
    if name not in known:
        raise unknown_name("backend", name, known)
    return known[name]


def _make(line: str) -> Backend:
    module, _, cls = line.partition(":")
    made: Backend = getattr(import_module(module), cls)()
    return made
