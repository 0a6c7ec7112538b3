"""What the user asks of a search: how much may be lost, and what is to be won."""

import math
import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from qgraph.errors import UsageError, unknown_name

Objective = Literal["latency", "size", "memory"]
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_BYTES |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_QUANTITY = re.compile(r"([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Goal:
    """A promise to keep and an aim.

    Attributes:
        max_drop: By how much the score may become worse, in the metric's own unit; None for any.
        optimize: What is made as small as possible.
        max_bytes: The most bytes of the artifact's model; None for any number.
        max_ms: The longest median latency, milliseconds; None for any.
    """

    max_drop: float | None
    optimize: Objective = "latency"
    max_bytes: int | None = None
    max_ms: float | None = None


def make_goal(
    max_drop: str | float | None, optimize: str, max_size: str | None, max_latency: str | None
) -> Goal:
    """Read the options as the command line has them.

    Raises:
        UsageError: One can't be read, or nothing is asked for.
    """
    if optimize not in get_args(Objective):
        raise unknown_name("--optimize", optimize, get_args(Objective))
    goal = Goal(
        None if max_drop is None else read_drop(max_drop),
        cast(Objective, optimize),
        None if max_size is None else read_bytes(max_size),
        None if max_latency is None else read_milliseconds(max_latency),
    )
    if goal.max_drop is None and goal.max_bytes is None and goal.max_ms is None:
        raise UsageError("nothing bounds the search", fix="pass --max-drop, such as 0.5%")
    return goal


def read_drop(text: str | float) -> float:
    """Return how much may be lost: `0.5%` is 0.005, as `0.005` is.

    Raises:
        UsageError: It is no number of at least 0.
    """
    given = str(text).strip()
    try:
        drop = float(given.removesuffix("%")) / (100 if given.endswith("%") else 1)
    except ValueError:
        drop = math.nan
    if not 0 <= drop < math.inf:
        raise UsageError(
            f"--max-drop {given!r} is no loss", fix="write 0.5% or 0.005, of the metric's own unit"
        )
    return drop


def read_bytes(text: str) -> int:
    """Return a size in bytes: `10MB` is 10 million, `10MiB` 10 times 2**20.

    Raises:
        UsageError: It can't be read.
    """
    return int(_quantity(text, _BYTES, "--max-size", "10MB"))


def read_milliseconds(text: str) -> float:
    """Return a time in milliseconds: `4ms`, `0.004s` or `4000us`.

    Raises:
        UsageError: It can't be read.
    """
    return _quantity(text, _MILLISECONDS, "--max-latency", "4ms")


def _quantity(text: str, units: dict[str, float] | dict[str, int], option: str, like: str) -> float:
    found = _QUANTITY.fullmatch(text.strip())
    factor = units.get(found[2].lower()) if found else None
    amount = float(found[1]) * factor if found and factor is not None else 0.0
    if not 0 < amount < math.inf:
        raise UsageError(f"{option} {text!r} can't be read", fix=f"write it as {like}")
    return amount
