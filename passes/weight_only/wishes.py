"""What a user wants of single layers: `PATTERN=float`, or `PATTERN=BITS[:GROUP[:METHOD]]`."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from qgraph.errors import UsageError
from qgraph.passes.weight_only.layers import Layer
from qgraph.passes.weights import WEIGHT_QUANTIZERS

_FLOAT = "float"
_BITS = ("2", "3", "4", "8")
_FORM = "write PATTERN=float or PATTERN=BITS[:GROUP[:METHOD]], such as '*down_proj*=8:32'"


@dataclass(frozen=True)
class Wish:
    """How layers of some names are quantized.

    Attributes:
        line: As it was written.
        pattern: Glob of node names.
        bits: 2, 3, 4 or 8; None for float.
        group: Rows of a column that share a scale; None for that of the other layers.
        method: A method with uniform codes; None for that of the other layers.
    """

    line: str
    pattern: str
    bits: int | None
    group: int | None = None
    method: str | None = None

    def fits(self, *names: str) -> bool:
        """Whether the pattern fits one of the names."""
        return any(fnmatchcase(name, self.pattern) for name in names)


def read_wishes(lines: Sequence[str]) -> list[Wish]:
    """Read lines.

    Raises:
        UsageError: One can't be read.
    """
    return [_read(line) for line in lines]


def last_wish(wishes: Sequence[Wish], layer: Layer) -> Wish | None:
    """Return the last wish that fits a layer, or None."""
    names = [node.name or "" for node in layer.nodes]
    return next((wish for wish in reversed(wishes) if wish.fits(*names)), None)


def check_fits(wishes: Sequence[Wish], layers: Sequence[Layer], refused: dict[str, str]) -> None:
    """Refuse wishes for layers that the model lacks, or that can't be quantized.

    Args:
        wishes: The wishes.
        layers: What few bits suit.
        refused: Of other linear nodes why they stay in float, by name.

    Raises:
        UsageError: A pattern fits no layer. One for float may fit what is in float anyway.
    """
    names = [node.name or "" for layer in layers for node in layer.nodes]
    for wish in wishes:
        if wish.fits(*names):
            continue
        others = [name for name in refused if wish.fits(name)]
        if not others:
            raise UsageError(
                f"weight_only.layers: {wish.line!r} fits no linear layer",
                fix="`qgraph explain` of an artifact lists the names",
            )
        if wish.bits is not None:
            raise UsageError(
                f"weight_only.layers: {wish.line!r} fits only layers that stay in float",
                where=others[0],
                fix=refused[others[0]],
            )


def _read(line: str) -> Wish:
    pattern, equals, text = line.rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"layers: can't read {line!r}", fix=_FORM)
    if text == _FLOAT:
        return Wish(line, pattern, None)
    bits, *rest = text.split(":")
    bits = bits.removeprefix("int")
    group = rest[0] if rest else ""
    method = rest[1] if len(rest) > 1 else ""
    if bits not in _BITS or len(rest) > 2 or not (group.isascii() and group.isdigit() or not group):
        raise UsageError(f"layers: can't read {line!r}", fix=_FORM)
    if method and method not in WEIGHT_QUANTIZERS:
        raise UsageError(
            f"layers: {line!r} names a method without uniform codes",
            fix=f"use {', '.join(WEIGHT_QUANTIZERS)}",
        )
    return Wish(line, pattern, int(bits), int(group) if group else None, method or None)
