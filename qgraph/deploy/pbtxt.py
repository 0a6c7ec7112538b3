"""Protobuf's text format, written from plain Python: enough for a configuration file.

Written here so that deploying needs no package of the server's; the tests, and `deploy` itself where
`tritonclient` is installed, parse the result with the server's own messages.
Source: https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from collections.abc import Mapping, Sequence
from typing import Any


class Word(str):
    """The name of an enum's value, which stands without quotes."""


def dumps(message: Mapping[str, Any]) -> str:
    """Write a message.

    Args:
        message: Field name -> bool, int, str, `Word`, another message, or a list of any of these.
            None and empty lists are left out; an empty message is written.
    """
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for name, value in message.items():
        if value is None:
            continue
        if isinstance(value, Sequence) and not isinstance(value, str):
            lines += _repeated(name, value, indent)
        else:
            lines += _field(name, value, indent)
    return lines


def _repeated(name: str, values: Sequence[Any], indent: str) -> list[str]:
    if values and not any(isinstance(value, Mapping) for value in values):
        return [f"{indent}{name}: [{', '.join(map(_scalar, values))}]"]
    return [line for value in values for line in _field(name, value, indent)]


def _field(name: str, value: Any, indent: str) -> list[str]:
    if isinstance(value, Mapping):
        inner = _lines(value, indent + "  ")
        return [f"{indent}{name} {{", *inner, f"{indent}}}"] if inner else [f"{indent}{name} {{}}"]
    return [f"{indent}{name}: {_scalar(value)}"]


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word | int):
        return str(value)
    return f'"{_escaped(value)}"'


def _escaped(text: str) -> str:
    """Bytes of UTF-8 that are not printable ASCII become octal escapes, which every parser reads."""
    plain = {ord('"'): '\\"', ord("\\"): "\\\\"}
    return "".join(
        plain.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}")
        for byte in text.encode("utf-8", errors="surrogateescape")
    )
