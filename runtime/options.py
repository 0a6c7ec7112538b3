"""Options of one engine: a dataclass of plain values, read from JSON or the command line."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from qgraph.errors import EngineError, UsageError, unknown_name
from qgraph.runtime.backend import EngineOptions

_Options = TypeVar("_Options")


def own_options(kind: type[_Options], given: Mapping[str, Any], engine: str) -> _Options:
    """Make an engine's options, a dataclass of bool, int, str and Literal fields.

    Args:
        kind: The dataclass.
        given: Values by field name, as a manifest has them.
        engine: Name for errors.

    Raises:
        UsageError: There is no such option; the nearest is suggested.
        EngineError: A value is of the wrong type, or none of those allowed.
    """
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name, value in given.items():
        if name not in known:
            raise unknown_name(f"option of {engine}", name, known)
        _check(name, value, hints[name], engine)
    return kind(**given)


def no_options(options: EngineOptions, engine: str) -> None:
    """Refuse options of an engine's own where it has none.

    Raises:
        UsageError: There are some.
    """
    for name in options.engine:
        raise UsageError(f"unknown option of {engine} {name!r}", fix="it has none of its own")


def _check(name: str, value: Any, hint: Any, engine: str) -> None:
    if get_origin(hint) is Literal:
        fits, wanted = value in get_args(hint), " or ".join(map(str, get_args(hint)))
    else:
        fits, wanted = (
            type(value) is hint,
            {bool: "true or false", int: "a number"}.get(hint, "text"),
        )
    if not fits:
        raise EngineError(
            f"option {name} is {value!r}, which it can't be", where=engine, fix=f"use {wanted}"
        )


def read_options(lines: Iterable[str]) -> dict[str, Any]:
    """Read `NAME=VALUE` lines; values are TOML, and texts where they aren't any.

    Raises:
        UsageError: A line has no `=`.
    """
    from qgraph.recipe_files import toml_value

    found = {}
    for line in lines:
        name, equals, text = line.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"can't read the option {line!r}", fix="write NAME=VALUE")
        found[name.strip()] = toml_value(text.strip())
    return found
