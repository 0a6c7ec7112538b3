"""In which ways the weight of one layer may be kept: in float, or in some bits with some groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape

from qgraph.errors import UsageError
from qgraph.passes.weight_only.layers import Layer
from qgraph.target import WeightOnlyRules

# Shorter groups cost a scale more often and round finer.
GROUPS = (32, 64, 128)
_BITS = (8, 4, 3, 2)
_FLOAT_NAME = "fp32"
_FORM = "write PATTERN=fp32, PATTERN=int8, PATTERN=int4 or PATTERN=int4:32"


@dataclass(frozen=True)
class Kind:
    """A way to keep a weight.

    Attributes:
        bits: 2, 3, 4 or 8; None for float.
        group: Rows of a column that share a scale; 0 for whole columns.
    """

    bits: int | None = None
    group: int = 0

    @property
    def name(self) -> str:
        """What `--assign` calls it, with its group."""
        return _FLOAT_NAME if self.bits is None else f"int{self.bits}:{self.group}"

    def line(self, layer: str) -> str:
        """Return the line of `weight_only.layers` that gives it to a layer."""
        what = "float" if self.bits is None else f"{self.bits}:{self.group}"
        return f"{escape(layer)}={what}"


FLOAT = Kind()


@dataclass(frozen=True)
class Wanted:
    """A line of `--assign`.

    Attributes:
        line: As it was written.
        pattern: Glob of names or operators.
        bits: None for float.
        group: None for any.
    """

    line: str
    pattern: str
    bits: int | None
    group: int | None = None

    def fits(self, layer: Layer) -> bool:
        """Whether the pattern fits one of the layer's nodes."""
        return any(
            fnmatchcase(text, self.pattern)
            for node in layer.nodes
            for text in (node.name or "", node.op_type)
        )


def read_assign(lines: Sequence[str], layers: Sequence[Layer]) -> list[Wanted]:
    """Read `PATTERN=fp32`, `PATTERN=intBITS` and `PATTERN=intBITS:GROUP` lines.

    Raises:
        UsageError: One can't be read, or nothing fits its pattern.
    """
    found = []
    for line in lines:
        wanted = _read(line)
        if not any(wanted.fits(layer) for layer in layers):
            raise UsageError(
                f"--assign {line!r} fits no linear layer whose weight can be in few bits",
                fix="`qgraph explain` of an artifact in few bits lists nodes and reasons",
            )
        found.append(wanted)
    return found


def kinds_of(
    layer: Layer,
    rules: WeightOnlyRules,
    fewest: int,
    group: int,
    assign: Sequence[Wanted] = (),
) -> list[Kind]:
    """Return the ways to keep a layer's weight, float first, the coarsest last.

    Args:
        layer: The layer.
        rules: What the target executes.
        fewest: The fewest bits that are asked for.
        group: Groups of the other precisions, in which 8 bits are.
        assign: What the user decided; the last that fits counts.

    Raises:
        UsageError: The user wants what the target lacks.
    """
    wanted = next((each for each in reversed(assign) if each.fits(layer)), None)
    if wanted is not None:
        return _forced(layer, rules, wanted, group)
    found = [FLOAT]
    for bits in _BITS:
        if bits >= fewest and bits in rules.bits:
            found += _offered(layer.size, rules, bits, group)
    return found


def _offered(rows: int, rules: WeightOnlyRules, bits: int, group: int) -> list[Kind]:
    """All groups that pay; of 8 bits one without padding, since finer ones hardly round better."""
    if bits < 8:
        return _groups(rows, rules, bits, (group, *GROUPS))
    shorter = [length for length in GROUPS if length < group]
    able = _groups(rows, rules, bits, (group, *shorter))
    return [kind for kind in able if not kind.group or rows % kind.group == 0][-1:] or able[-1:]


def _groups(rows: int, rules: WeightOnlyRules, bits: int, groups: Sequence[int]) -> list[Kind]:
    """The groups that suit a column; one longer than it is would only be padded."""
    lengths = {rules.block_for(rows, g) for g in groups if not rules.blocks or g in rules.blocks}
    known = sorted(length for length in lengths if length)
    fitting = [length for length in known if length <= rows] or known[:1]
    return [Kind(bits, length) for length in [*fitting, *([0] if 0 in lengths else [])]]


def _forced(layer: Layer, rules: WeightOnlyRules, wanted: Wanted, group: int) -> list[Kind]:
    if wanted.bits is None:
        return [FLOAT]
    if wanted.group is not None:
        try:
            rules.check("gptq", True, wanted.bits, wanted.group, rules.symmetric)
        except UsageError as error:
            raise UsageError(error.what, where=f"--assign {wanted.line}", fix=error.fix) from None
    found: list[Kind] = []
    if wanted.group is not None:
        found = _groups(layer.size, rules, wanted.bits, (wanted.group,))
    elif wanted.bits in rules.bits:
        found = _offered(layer.size, rules, wanted.bits, group)
    if not found:
        raise UsageError(
            f"--assign {wanted.line!r}: the target does not keep {layer.name} so",
            fix="leave the group out, or choose other bits",
        )
    return found


def _read(line: str) -> Wanted:
    pattern, equals, text = line.rpartition("=")
    if equals and pattern:
        if text == _FLOAT_NAME:
            return Wanted(line, pattern, None)
        name, colon, group = text.partition(":")
        bits = name.removeprefix("int")
        known = name.startswith("int") and bits in map(str, _BITS)
        if known and (not colon or group.isascii() and group.isdigit()):
            return Wanted(line, pattern, int(bits), int(group) if colon else None)
    raise UsageError(f"can't read --assign {line!r}", fix=_FORM)
