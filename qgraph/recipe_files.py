"""Find, merge and check recipe files; every mistake becomes one line that names file and key."""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from qgraph.errors import QGraphError, UsageError, unknown_name

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 8
_Model = TypeVar("_Model", bound=BaseModel)


def named_recipes() -> list[str]:
    """Return the names of the recipes that ship with qgraph, sorted."""
    files = resources.files("qgraph.recipes").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def find_recipe(name_or_path: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """Read a recipe by name or path, and what it extends.

    Args:
        name_or_path: A name, or a path: what ends in `.toml` or holds a separator.

    Returns:
        The file for messages, and its merged keys without `extends`, with `name` filled in.

    Raises:
        UsageError: As `qgraph.recipe.load_recipe`, or files that extend each other in a circle.
    """
    return _find(os.fspath(name_or_path), Path(), ())


def toml_value(text: str) -> Any:
    """Read a TOML value; what is none, a date or a table, stays the string it is."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    value = parsed.get("value")
    scalar = isinstance(value, bool | int | float | str | list)
    return value if scalar and len(parsed) == 1 and _jsonable(value) else text


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file of bounded size.

    Args:
        path: The file.
        what: What to call it in messages.

    Raises:
        UsageError: It can't be read, is too large, or is no TOML, with its line.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
        text = raw.decode("utf-8")
    except OSError as error:
        raise UsageError(f"can't be read ({error.strerror})", where=str(path)) from None
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8 text", where=str(path), fix="write TOML") from None
    if len(raw) > _MAX_BYTES:
        raise UsageError(f"is too large for a {what}", where=str(path))
    return _parse(text, str(path))


def validated(model: type[_Model], data: Mapping[str, Any], where: str) -> _Model:
    """Build a pydantic model from TOML data.

    Values must have the type that the model names; nothing is converted but an integer to float.

    Raises:
        UsageError: One line with the file, the key, what was expected and what was found.
    """
    if not _jsonable(data):
        raise UsageError("holds a date or time, which no key takes", where=where)
    try:
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise _one_line(error, model, data, where) from None


def _find(name: str, base: Path, opened: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    is_path = name.endswith(".toml") or "/" in name or os.sep in name
    if is_path:
        path = base / Path(name).expanduser()
        identity, text = os.path.realpath(path), _read(path)
        where, stem, base = str(path), path.stem, path.parent
    else:
        if name not in named_recipes():
            raise unknown_name("recipe", name, named_recipes())
        file = resources.files("qgraph.recipes") / f"{name}.toml"
        identity = where = f"recipe {name}"
        text, stem = file.read_text("utf-8"), name
    if identity in opened or len(opened) >= _MAX_DEPTH:
        raise UsageError("extends itself, or too many others", where=where, fix="cut the chain")
    data = _parse(text, where)
    data.setdefault("name", stem)
    merged: dict[str, Any] = {}
    for parent in _parents(data, where):
        try:
            merged = _merge(merged, _find(parent, base, (*opened, identity))[1])
        except QGraphError as error:
            if error.where:
                raise
            raise UsageError(error.what, where=f"{where}: extends", fix=error.fix) from None
    for own in ("name", "description"):  # these say what one file is, not what it wants
        merged.pop(own, None)
    return where, _merge(merged, data)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise UsageError("is too large for a recipe", where=str(path))
        return raw.decode("utf-8")
    except FileNotFoundError:
        names = ", ".join(named_recipes())
        fix = f"give a recipe file or one of: {names}"
        raise UsageError("there is no such file", where=str(path), fix=fix) from None
    except OSError as error:
        raise UsageError(f"can't be read ({error.strerror})", where=str(path)) from None
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8 text", where=str(path), fix="write TOML") from None


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).rpartition(" (at ")
        line = re.search(r"line (\d+)", place)
        number = line[1] if line else str(text.count("\n") + 1)  # else it is "end of document"
        raise UsageError(
            f"is not valid TOML ({what or error})", where=f"{where}:{number}", fix="correct it"
        ) from None
    except RecursionError:
        raise UsageError("is nested too deeply", where=where) from None


def _parents(data: dict[str, Any], where: str) -> list[str]:
    extends = data.pop("extends", [])
    parents = [extends] if isinstance(extends, str) else extends
    if isinstance(parents, list) and all(isinstance(parent, str) for parent in parents):
        return parents
    raise UsageError(
        "expected the name of a recipe, a path or a list of them",
        where=f"{where}: extends",
        fix='write extends = "default"',
    )


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return both, tables merged key by key, with `over` winning everything else."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _jsonable(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _one_line(
    error: ValidationError, model: type[BaseModel], data: Mapping[str, Any], where: str
) -> UsageError:
    """Say the first mistake; the branches of a union are told as `A, or B`."""
    found = error.errors(include_url=False, include_context=False)
    key, value = _place(found[0]["loc"], data)
    same = [one for one in found if _place(one["loc"], data)[0] == key]
    dotted = ".".join(map(str, key)) or "recipe"
    if found[0]["type"] == "extra_forbidden":
        known = sorted(_fields(model, key[:-1]))
        near = difflib.get_close_matches(str(key[-1]), known, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(known)}"
        return UsageError(f"unknown key {dotted!r}", where=where, fix=fix)
    if found[0]["type"] == "missing":
        return UsageError(f"lacks the key {'.'.join(map(str, found[0]['loc']))!r}", where=where)
    field = _fields(model, key[:-1]).get(str(key[-1])) if key else None
    messages = [one["msg"].removeprefix("Value error, ") for one in same]
    messages = [message[0].lower() + message[1:] for message in messages]
    expected = ", or ".join(dict.fromkeys(messages))
    if field is not None and field.description:
        expected = f"expected {field.description}"
    got = "" if isinstance(value, dict) else f", got {value!r}"
    return UsageError(f"{_toml_words(expected)}{got}", where=f"{where}: {dotted}")


def _toml_words(message: str) -> str:
    return message.replace("an object", "a table").replace("a valid array", "a list")


def _place(loc: Sequence[int | str], data: Any) -> tuple[tuple[int | str, ...], Any]:
    """Cut a location to the part that is in the data: pydantic adds the branches of unions."""
    key: list[int | str] = []
    for part in loc:
        inside = data if isinstance(data, dict) else range(len(data) if _is_list(data) else 0)
        if part in inside:
            data = data[part]
            key.append(part)
    return tuple(key), data


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _fields(model: type[BaseModel], path: Sequence[int | str]) -> dict[str, FieldInfo]:
    """Return the keys that the table at `path` takes."""
    for part in path:
        field = model.model_fields.get(str(part))
        kinds = [] if field is None else [field.annotation, *_arguments(field.annotation)]
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not inner:
            return {}
        model = inner[0]
    return dict(model.model_fields)


def _arguments(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__args__", ())
