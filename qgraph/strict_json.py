"""Reads JSON that nobody vouches for: bounded, no NaN, no key twice."""

import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

from qgraph.data.limits import readable
from qgraph.errors import DataError

MAX_BYTES = 64 << 20


def read_json(path: str | os.PathLike[str], *, limit: int = MAX_BYTES) -> Any:
    """Return a JSON file's content.

    Args:
        path: The file.
        limit: Bytes that it may have.

    Raises:
        DataError: It can't be read, is too large or nested too deeply, is no JSON (with line and
            column), holds NaN or infinities, or an object has a key twice.
    """
    where = str(path)
    try:
        # One byte more than allowed tells a pipe without a size from a file of just that size.
        with Path(path).open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"can't be read ({reason})", where=where) from None
    if len(content) > limit:
        raise DataError(f"is larger than {readable(limit)}", where=where)
    return parse_json(content, where)


def parse_json(content: bytes, where: str) -> Any:
    """Return what JSON text holds; see `read_json`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise DataError(f"has the key {key!r} twice", where=where, fix="remove one")
            found[key] = value
        return found

    def refuse(name: str) -> NoReturn:
        raise DataError(f"holds {name}, which is no JSON number", where=where)

    try:
        return json.loads(
            content.decode("utf-8-sig"), object_pairs_hook=unique, parse_constant=refuse
        )
    except UnicodeDecodeError:
        raise DataError("is no UTF-8 text", where=where) from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"is no JSON ({error.msg}, {place})", where=where) from None
    except RecursionError:
        raise DataError("is nested too deeply", where=where) from None
    except ValueError:  # an integer of more digits than Python converts
        raise DataError("holds a number of too many digits", where=where) from None


def number(value: Any, what: str, where: str) -> float:
    """Return a finite number.

    Raises:
        DataError: It is something else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if math.isfinite(found):
            return found
    raise DataError(f"{what} is {_short(value)}, not a finite number", where=where)


def whole(value: Any, what: str, where: str) -> int:
    """Return a whole number; `3.0` counts as one.

    Raises:
        DataError: It is something else.
    """
    found = number(value, what, where)
    if found != int(found):
        raise DataError(f"{what} is {_short(value)}, not a whole number", where=where)
    return int(found)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."
