"""What the user of a deployment should know."""

from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True)
class Remarks:
    """Lines for people.

    Attributes:
        warnings: What they may not want.
        notes: What was decided and why, and what was not tried.
    """

    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __add__(self, other: Self) -> "Remarks":
        """Put others behind."""
        return Remarks([*self.warnings, *other.warnings], [*self.notes, *other.notes])
