"""Measured times of units as a file, to be used by searches on other machines.

A search writes `costs.json` into its artifact; `--costs FILE` reads one. Files come from anywhere,
so they are checked before they are believed.
"""

import os
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qgraph.errors import DataError
from qgraph.search.costs import CostRow, Costs, Engine, processor_of
from qgraph.strict_json import read_json

FORMAT = "qgraph unit costs"
MAX_BYTES = 64 << 20
_Text = Annotated[str, Field(min_length=1, max_length=500)]
_Shape = Annotated[tuple[Annotated[int, Field(ge=0, le=1 << 40)], ...], Field(max_length=32)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class UnitRow(_Part):
    """One unit in one precision.

    Attributes:
        unit: Name of a node that it was measured of.
        op: Operator.
        inputs: Shapes of what it reads.
        key: Operators, attributes, shapes and types: what a unit must agree in to take as long.
        ms: Milliseconds beyond an empty call.
    """

    unit: Annotated[str, Field(max_length=10_000)]
    op: _Text
    inputs: tuple[_Shape, ...]
    key: Annotated[str, Field(min_length=1, max_length=1 << 20)]
    ms: Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)]


class CostsFile(_Part):
    """Times of units in one engine on one machine.

    Attributes:
        format: Says what it is.
        version: Of the format.
        engine: Backend and float precision.
        processor: What computed.
        units: The times.
    """

    format: Literal["qgraph unit costs"]
    version: Literal[1]
    engine: _Text
    processor: _Text
    units: Annotated[tuple[UnitRow, ...], Field(max_length=100_000)]

    @property
    def backend(self) -> str:
        """Name of the backend."""
        return self.engine.partition(" ")[0]

    def by_key(self) -> dict[str, float]:
        """Milliseconds by key."""
        return {row.key: row.ms for row in self.units}


def read_costs(path: str | os.PathLike[str]) -> CostsFile:
    """Read a file of costs.

    Raises:
        DataError: It can't be read or is no such file; the message names the first wrong entry.
    """
    content = read_json(path, limit=MAX_BYTES)
    where = str(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError("is no file of unit costs", where=where, fix="give a search's costs.json")
    units = content.get("units")
    if isinstance(units, list):
        # JSON has lists where the model has tuples.
        content = {**content, "units": tuple(map(_tuples, units))}
    try:
        found = CostsFile.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = str(first["msg"])
        raise DataError(
            message[:1].lower() + message[1:],
            where=f"{where}: {place}",
            fix="give costs.json as a search wrote it",
        ) from None
    if len(found.by_key()) < len(found.units):
        raise DataError("has a key of a unit twice", where=where, fix="remove one")
    return found


def costs_json(costs: Costs, engine: Engine) -> str | None:
    """Return the file's text; None where nothing was measured."""
    rows: Sequence[CostRow] = [row for row in costs.rows if row.ms > 0]
    if not rows:
        return None
    units = [
        UnitRow(unit=row.unit[:10_000], op=row.op, inputs=row.inputs, key=row.key, ms=row.ms)
        for row in rows
    ]
    return CostsFile(
        format="qgraph unit costs",
        version=1,
        engine=str(engine),
        processor=processor_of(engine),
        units=tuple(units),
    ).model_dump_json(indent=1)


def _tuples(row: object) -> object:
    if not isinstance(row, dict) or not isinstance(row.get("inputs"), list):
        return row
    inputs = tuple(tuple(each) if isinstance(each, list) else each for each in row["inputs"])
    return {**row, "inputs": inputs}
