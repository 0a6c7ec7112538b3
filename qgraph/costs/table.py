"""A table of measured times, and how it is read between its points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

# Shapes that a time between the measured ones is taken from.
NEIGHBOURS = 4


class Row(BaseModel):
    """Times of one product x W by one kernel.

    Attributes:
        kernel: Type of the weight in it: `fp16`, `int4`, `int8`, ...
        block: Rows of the weight that share a scale; 0 where there are none.
        depth: K, rows of the weight.
        width: N, its columns.
        rows: M, rows of x, ascending.
        us: Time for each of them, microseconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kernel: str
    block: int = Field(ge=0)
    depth: int = Field(ge=1)
    width: int = Field(ge=1)
    rows: tuple[int, ...] = Field(min_length=1)
    us: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _paired(self) -> "Row":
        if len(self.us) != len(self.rows) or list(self.rows) != sorted(set(self.rows)):
            raise ValueError("rows must ascend, with one time for each")
        if min(self.rows) < 1 or not all(math.isfinite(t) and t > 0 for t in self.us):
            raise ValueError("rows and times must be above 0")
        return self


@dataclass(frozen=True)
class Ratio:
    """One kernel's time relative to another's.

    Attributes:
        ratio: Below 1 where it is faster.
        extrapolated: Nearest point that was measured, where the question lies outside of those;
            else empty.
    """

    ratio: float
    extrapolated: str = ""


class CostTable(BaseModel):
    """Times of products on one device.

    Attributes:
        device: Its name.
        engine: What ran them, with its version.
        date: When, ISO 8601; empty where it was not noted.
        command: What makes the table again; empty where nothing does.
        notes: What a reader must know.
        products: The times.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    engine: str
    date: str
    command: str
    notes: str = ""
    products: tuple[Row, ...]

    def ratio(
        self, kernel: str, against: str, depth: int, width: int, rows: int, block: int
    ) -> Ratio | None:
        """Return how long `kernel` takes relative to `against`, or None where it can't be known.

        Logarithms of the ratio are interpolated: linearly in log M, and between the nearest shapes
        by the inverse square of their distance in log K and log N. Outside of what was measured
        the nearest point counts.
        """
        pairs = self._pairs(kernel, against, block)
        if not pairs:
            return None
        here = np.log2([depth, width])
        places = np.log2([[row.depth, row.width] for row, _ in pairs])
        distance = np.square(places - here).sum(axis=1)
        near = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        logs = np.array([_log_ratio(*pairs[int(index)], rows) for index in near])
        weight = 1 / np.maximum(distance[near], 1e-9)
        ratio = float(np.exp2((logs * weight).sum() / weight.sum()))
        outside = bool((here < places.min(axis=0)).any() or (here > places.max(axis=0)).any())
        first = pairs[near[0]][0]
        measured = min(first.rows, key=lambda m: abs(math.log(m / rows)))
        if outside or not first.rows[0] <= rows <= first.rows[-1]:
            return Ratio(ratio, f"{measured} x {first.depth} x {first.width}")
        return Ratio(ratio)

    def _pairs(self, kernel: str, against: str, block: int) -> list[tuple[Row, Row]]:
        """Return rows of both kernels by shape, those of the nearest block length."""
        blocks = {row.block for row in self.products if row.kernel == kernel}
        if not blocks:
            return []
        # Whole columns are the longest blocks.
        wanted = math.log2(block or 1 << 20)
        nearest = min(blocks, key=lambda each: abs(math.log2(each or 1 << 20) - wanted))
        others = {(r.depth, r.width): r for r in self.products if r.kernel == against}
        return [
            (row, others[row.depth, row.width])
            for row in self.products
            if (row.kernel, row.block) == (kernel, nearest) and (row.depth, row.width) in others
        ]


def _log_ratio(row: Row, other: Row, rows: int) -> float:
    """Base-2 logarithm of the ratio of their times at M = `rows`."""
    return _log_time(row.rows, row.us, rows) - _log_time(other.rows, other.us, rows)


def _log_time(measured: Sequence[int], us: Sequence[float], rows: int) -> float:
    return float(np.interp(math.log2(rows), np.log2(measured), np.log2(us)))
