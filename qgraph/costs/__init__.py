"""Measured times of one product on one device, and whether weights in few bits pay there.

Each `NAME.json` here is a `CostTable`, written by a benchmark on that device; a target names it in
`Target.costs`.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pydantic

from qgraph.costs.table import CostTable
from qgraph.errors import UsageError, unknown_name

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Verdict:
    """What the measured times say about one product.

    Attributes:
        pays: Whether the kernel is at least as fast as the other one.
        ratio: Its time relative to the other's.
        source: What that is taken from.
    """

    pays: bool
    ratio: float
    source: str


@cache
def load_costs(name: str) -> CostTable:
    """Return the measured times called `name`.

    Raises:
        UsageError: There are none of that name, or the file is damaged.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        raise unknown_name("table of costs", name, [each.stem for each in FOLDER.glob("*.json")])
    try:
        return CostTable.model_validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{place}: {first['msg']}", where=str(path), fix="reinstall qgraph"
        ) from error


# Ratio of times up to which few bits are worth what they cost in accuracy: measured times of one
# kernel move by a tenth from run to run.
PAYS = 0.85


def pays(
    table: CostTable,
    depth: int,
    width: int,
    rows: int,
    kernel: str,
    block: int,
    *,
    against: str = "fp16",
) -> Verdict | None:
    """Say whether x W, x [rows, depth], W [depth, width], is fast in `kernel`.

    Args:
        table: Measured times.
        depth: K.
        width: N.
        rows: M.
        kernel: As the table calls it: `int4`, `int8`, ...
        block: Rows of the weight that share a scale; 0 for whole columns.
        against: The kernel that would do it otherwise.

    Returns:
        The verdict; None where the table lacks one of the kernels.
    """
    found = table.ratio(kernel, against, depth, width, rows, block)
    if found is None:
        return None
    source = f"measured on {table.device}"
    if found.extrapolated:
        source = f"guessed from {found.extrapolated} {source}"
    return Verdict(found.ratio <= PAYS, found.ratio, source)
