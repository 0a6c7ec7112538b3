"""In which ways a unit, and what follows it up to the next one, may compute."""

from dataclasses import dataclass

FLOAT, CODES, FLOAT8 = "fp32", "int8", "fp8"
HALVES = ("fp16", "bf16")
WEIGHTS = "int8-weights"
# Integers with activations in 16 bits.
WIDE = "w8a16"
# Products of codes whose scale is found at run time: floats outside.
DYNAMIC = "int8-dynamic"
# Weights alone in codes, the finest first. Three bits are held in four, and win nothing by it.
FEW_BITS = (WEIGHTS, "int4", "int2")


@dataclass(frozen=True)
class Way:
    """How a unit computes.

    Attributes:
        unit: The unit itself: `fp32`, `fp16`, `bf16`, `fp8`, `int8`, `w8a16`, `int8-dynamic`, or floats by a
            weight in few bits: `int8-weights:GROUP`, `int4:GROUP`, `int2:GROUP`.
        rest: What follows it in its segment, and its floats: `fp32`, `fp16` or `bf16`.
    """

    unit: str
    rest: str = FLOAT

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.unit if self.rest in (FLOAT, self.unit) else f"{self.unit}+{self.rest}"

    @property
    def weight(self) -> tuple[int, int] | None:
        """Bits and group of its weight, where the weight alone is in codes."""
        kind, colon, group = self.unit.partition(":")
        if not colon:
            return None
        return (8 if kind == WEIGHTS else int(kind.removeprefix("int"))), int(group)

    def fits(self, wanted: str) -> bool:
        """Whether it is what a line of `--assign` asks for: `int4` is of any group."""
        return wanted in (self.unit, self.unit.partition(":")[0], self.name)


PLAIN = Way(FLOAT)


def way(name: str) -> Way:
    """Return the way of a name."""
    unit, plus, rest = name.partition("+")
    if not plus:
        rest = unit if unit in HALVES else FLOAT
    return Way(unit, rest)


def weight_way(bits: int, group: int, rest: str = FLOAT) -> Way:
    """Return the way that has a weight of so many bits in groups."""
    return Way(f"{WEIGHTS if bits == 8 else f'int{bits}'}:{group}", rest)
