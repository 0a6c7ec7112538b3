"""Explicit lists of "module:name" strings, which is how everything that can be added is found."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, TypeVar

from qgraph.errors import unknown_name

_Entry = TypeVar("_Entry")


def load(reference: str) -> Any:
    """Import what a "module:name" string names."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def by_name(references: Iterable[str]) -> dict[str, Any]:
    """Import every entry of a list, and return them by their `name`."""
    entries = [load(reference) for reference in references]
    return {entry.name: entry for entry in entries}


def pick(kind: str, name: str, known: Mapping[str, _Entry]) -> _Entry:
    """Return the entry called `name`.

    Raises:
        UsageError: There is none; the nearest name is suggested.
    """
    if name not in known:
        raise unknown_name(kind, name, known)
    return known[name]
