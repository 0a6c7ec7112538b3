"""Which precision each unit gets: an integer programme with a price for every border.

Each unit takes one of its options. An option costs time, bytes and loss, reads and hands on values in
some format, and says in which one the rest of its segment computes; where a value is written in one
format and read in another, its conversion costs time, once however many readers there are. Losses
add up. Minimising over all assignments is exact, by branch and bound.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import EngineError
from qgraph.search.ways import FLOAT

# Of several assignments that cost the same the faster one is taken, then the one that loses least.
_TIE = 1e-5

Part = Literal["reads", "writes", "rest"]


@dataclass(frozen=True)
class Option:
    """One precision of one unit.

    Attributes:
        name: The precision.
        loss: What it alone adds to the loss.
        time: What it takes, any unit, the same for all.
        bytes: What its constants take in the file.
        working: What its inputs and results take while it runs, bytes.
        reads: Format that it reads: `fp32`, `fp16`, or codes such as `int8`.
        writes: Format that it hands out.
        rest: Format of what follows the unit in its segment.
    """

    name: str
    loss: float = 0.0
    time: float = 0.0
    bytes: float = 0.0
    working: float = 0.0
    reads: str = FLOAT
    writes: str = FLOAT
    rest: str = FLOAT


@dataclass(frozen=True)
class End:
    """Where a value is written or read.

    Attributes:
        unit: Index of the unit; None for the graph's inputs and outputs, which are in fp32.
        part: Which format of its option counts.
    """

    unit: int | None = None
    part: Part = "rest"

    def format(self, taken: Sequence[Option]) -> str:
        """Return the format here, where the units take these options."""
        return FLOAT if self.unit is None else str(getattr(taken[self.unit], self.part))


Formats = tuple[str, str]
"""From which format to which one."""


@dataclass(frozen=True)
class Border:
    """A value between units.

    Attributes:
        writer: Where it is computed.
        readers: Where it is read.
        times: By formats, time of the conversion; nothing for those that are not named.
        losses: By formats, what the conversion loses. Readers in integers have the error of their
            inputs in their own loss, and corrected in their bias.
    """

    writer: End
    readers: tuple[End, ...]
    times: Mapping[Formats, float] = field(default_factory=dict)
    losses: Mapping[Formats, float] = field(default_factory=dict)

    @property
    def conversions(self) -> list[Formats]:
        """Those that cost something."""
        return [each for each in dict.fromkeys((*self.times, *self.losses)) if each[0] != each[1]]

    def needed(self, taken: Sequence[Option]) -> set[Formats]:
        """Return the conversions that options of the units make necessary."""
        written = self.writer.format(taken)
        return {(written, reader.format(taken)) for reader in self.readers} - {(written, written)}


@dataclass(frozen=True)
class Problem:
    """What is to be decided.

    Attributes:
        units: The options of each unit.
        borders: The values between them.
        time: Time of everything else.
        bytes: Bytes of everything else.
    """

    units: Sequence[Sequence[Option]]
    borders: Sequence[Border] = ()
    time: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Choice:
    """An assignment and what it is predicted to cost.

    Attributes:
        options: For each unit, the index of its option.
        loss: Sum of the losses.
        time: Everything, conversions included.
        bytes: Everything.
        memory: Bytes and the largest working set.
    """

    options: tuple[int, ...]
    loss: float
    time: float
    bytes: float
    memory: float


def weigh(problem: Problem, options: Sequence[int]) -> Choice:
    """Return what an assignment costs."""
    taken = [unit[index] for unit, index in zip(problem.units, options, strict=True)]
    time = problem.time + sum(each.time for each in taken)
    loss = sum(each.loss for each in taken)
    for border in problem.borders:
        for conversion in border.needed(taken):
            time += border.times.get(conversion, 0.0)
            loss += border.losses.get(conversion, 0.0)
    size = problem.bytes + sum(each.bytes for each in taken)
    working = max((each.working for each in taken), default=0.0)
    return Choice(tuple(options), loss, time, size, size + working)


def choose(
    problem: Problem,
    objective: Literal["latency", "size", "memory", "loss"],
    *,
    max_loss: float = np.inf,
    max_time: float = np.inf,
    max_bytes: float = np.inf,
) -> Choice | None:
    """Return the best assignment within the bounds, or None where there is none.

    Args:
        problem: What is to be decided.
        objective: What is made smallest; equals are told apart by time, then by loss.
        max_loss: Bound on the sum of losses.
        max_time: Bound on the time.
        max_bytes: Bound on the bytes.

    Raises:
        EngineError: scipy is not installed, or its solver gives up.

    Source:
        Huangfu and Hall 2018, "Parallelizing the dual revised simplex method" (HiGHS); the
        formulation is the usual one for mixed precision, such as Yao et al. 2021, "HAWQ-V3",
        section 3.4, with borders added.
    """
    if not problem.units:
        found = weigh(problem, ())
        fits = found.loss <= max_loss and found.time <= max_time and found.bytes <= max_bytes
        return found if fits else None
    model = _Model(problem)
    bounds = [
        (model.loss, max_loss),
        (model.time, max_time - problem.time),
        (model.bytes, max_bytes - problem.bytes),
    ]
    for row, bound in bounds:
        if bound < np.inf:
            model.at_most(row, bound)
    goal = {"latency": model.time, "size": model.bytes, "memory": model.memory, "loss": model.loss}
    row = goal[objective]
    ties = {"loss": (model.time,), "latency": (model.loss,)}
    for power, other in enumerate(ties.get(objective, (model.time, model.loss)), 1):
        scale = np.abs(row).sum() / max(float(np.abs(other).sum()), 1e-300)
        row = row + _TIE**power * scale * other
    options = model.solve(row)
    return None if options is None else weigh(problem, options)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what HiGHS prints of its own, past Python, out of the output of --json."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


class _Model:
    """Rows over the variables: one an option, one a conversion, and the largest working set."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.first = np.cumsum([0, *(len(unit) for unit in problem.units)])
        count = int(self.first[-1])
        self.conversions = [
            (border, each) for border in problem.borders for each in self._able(border)
        ]
        self.binary, self.size = count, count + len(self.conversions) + 1
        every = [option for unit in problem.units for option in unit]
        times = [border.times.get(each, 0.0) for border, each in self.conversions]
        losses = [border.losses.get(each, 0.0) for border, each in self.conversions]
        self.loss = self._row([o.loss for o in every], losses)
        self.time = self._row([o.time for o in every], times)
        self.bytes = self._row([o.bytes for o in every])
        self.memory = self.bytes.copy()
        self.memory[-1] = 1.0
        self.rows: list[NDArray[np.float64]] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self._assignments()
        self._conversions()
        self._working(every)

    def at_most(self, row: NDArray[np.float64], bound: float) -> None:
        """Bound a sum; rows are scaled, so that the solver's tolerance fits any unit."""
        scale = float(np.abs(row).max()) or 1.0
        self._add(row / scale, -np.inf, bound / scale)

    def solve(self, goal: NDArray[np.float64]) -> list[int] | None:
        try:
            from scipy.optimize import Bounds, LinearConstraint, milp
            from scipy.sparse import csr_array
        except ImportError as error:
            raise EngineError(
                f"scipy can't be imported ({error})", fix="run `pip install 'qgraph[search]'`"
            ) from error
        scale = float(np.abs(goal).max()) or 1.0
        whole = np.zeros(self.size)
        whole[: self.binary] = 1
        upper = np.ones(self.size)
        upper[-1] = np.inf
        with _silent():
            found = milp(
                goal / scale,
                integrality=whole,
                bounds=Bounds(np.zeros(self.size), upper),
                constraints=LinearConstraint(csr_array(np.array(self.rows)), self.low, self.high),
                options={"mip_rel_gap": 0.0, "time_limit": 60.0},
            )
        if found.status == 2:  # infeasible
            return None
        if found.x is None:
            raise EngineError(f"the solver gave up: {found.message}")
        pairs = zip(self.first, self.first[1:], strict=False)
        return [int(np.argmax(found.x[a:b])) for a, b in pairs]

    def _row(self, values: Sequence[float], borders: Any = None) -> NDArray[np.float64]:
        row = np.zeros(self.size)
        row[: self.binary] = values
        if borders is not None:
            row[self.binary : -1] = borders
        return row

    def _add(self, row: NDArray[np.float64], low: float, high: float) -> None:
        self.rows.append(row)
        self.low.append(low)
        self.high.append(high)

    def _assignments(self) -> None:
        for start, end in zip(self.first, self.first[1:], strict=False):
            row = np.zeros(self.size)
            row[start:end] = 1
            self._add(row, 1, 1)

    def _able(self, border: Border) -> list[Formats]:
        """The conversions of a border that its ends can come to need."""
        return [
            (written, read)
            for written, read in border.conversions
            if written in self._formats(border.writer)
            and any(read in self._formats(reader) for reader in border.readers)
        ]

    def _formats(self, end: End) -> set[str]:
        if end.unit is None:
            return {FLOAT}
        return {str(getattr(option, end.part)) for option in self.problem.units[end.unit]}

    def _conversions(self) -> None:
        """A conversion is needed where its one format is written and its other one is read."""
        for index, (border, (written, read)) in enumerate(self.conversions):
            wrote, one = self._has(border.writer, written)
            for reader in dict.fromkeys(border.readers):
                reads, other = self._has(reader, read)
                row = wrote + reads
                row[self.binary + index] = -1
                self._add(row, -np.inf, 1 - one - other)

    def _has(self, end: End, form: str) -> tuple[NDArray[np.float64], int]:
        """Whether an end has a format: a row over the options, and what is certain."""
        row = np.zeros(self.size)
        if end.unit is None:
            return row, int(form == FLOAT)
        options = self.problem.units[end.unit]
        row[self.first[end.unit] : self.first[end.unit + 1]] = [
            getattr(option, end.part) == form for option in options
        ]
        return row, 0

    def _working(self, every: Sequence[Option]) -> None:
        largest = max((option.working for option in every), default=0.0)
        if not largest:
            return
        for start, unit in zip(self.first, self.problem.units, strict=False):
            row = np.zeros(self.size)
            row[start : start + len(unit)] = [option.working for option in unit]
            row[-1] = -1
            self.at_most(row, 0)
