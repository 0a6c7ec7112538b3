"""Strings for people: safe to print, short, with units."""

from collections.abc import Sequence

_UNITS = ("B", "kB", "MB", "GB", "TB")


def printable(text: str, keep: str = "") -> str:
    """Return `text` with control characters escaped, so that no name can steer a terminal.

    Names in a model are untrusted: an escape sequence in one could rewrite what is on screen.

    Args:
        text: Anything.
        keep: Control characters that stay, such as a line break.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """Return `text` on one line, control characters escaped."""
    return printable(" ".join(text.split()))


def size(count: float) -> str:
    """Return bytes as people read them: 14225078 gives '14.2 MB'; kB is 1000 bytes."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def counted(number: int, singular: str, plural: str = "") -> str:
    """Return '1 node' or '2 nodes', with thousands separated."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def few(lines: Sequence[str], most: int = 3, between: str = "; ") -> str:
    """Return lines on one, those beyond `most` only counted: 'a; b; c; and 2 more'."""
    rest = len(lines) - most
    return between.join([*lines[:most], *([f"and {rest:,} more"] if rest > 0 else [])])


def dtype(name: str) -> str:
    """Return an ONNX type's name as numpy spells it: 'FLOAT' gives 'float32'."""
    lower = name.lower()
    return {"float": "float32", "double": "float64"}.get(lower, lower)


def shape(dims: Sequence[int | str | None] | None) -> str:
    """Return a shape as `[batch, 3, ?]`; `?` is an unnamed dynamic axis, `[...]` no known rank."""
    if dims is None:
        return "[...]"
    return f"[{', '.join('?' if d is None else str(d) for d in dims)}]"
