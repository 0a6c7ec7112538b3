"""What each unit takes in each of its ways on the engine, measured once for each shape.

A unit is timed alone, on one thread, fed with codes and handing out codes where it runs in
integers, so that chains of integer units cost no conversions; those are timed apart. Sums of such
times are not a model's time: threads, caches and the engine's own fusions are missing. So gains are
scaled such that the model all in float and the one all in integers take what they were measured to.
"""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from qgraph import onnx_io
from qgraph.cache import Cache
from qgraph.errors import QGraphError
from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions, Session
from qgraph.runtime.wrapped import OnDevice
from qgraph.search.observed import Seen
from qgraph.search.unit_parts import Part, UnitParts, conversion_part
from qgraph.search.units import Unit
from qgraph.search.ways import CODES, FLOAT, Way

KIND = "unit-cost"
_BLOCK_S = 0.008
_ROUNDS = 3
_LEAST_RUNS = 3
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino")


@dataclass(frozen=True)
class Engine:
    """What things are timed in.

    Attributes:
        backend: Its name.
        options: Its options; threads do not count, units are timed on one.
    """

    backend: str
    options: EngineOptions = field(default_factory=EngineOptions)

    def __str__(self) -> str:
        """Return a name that keys can hold."""
        own = ",".join(f"{key}={value}" for key, value in sorted(self.options.engine.items()))
        return " ".join(filter(None, (self.backend, self.options.float_precision, own)))


@dataclass(frozen=True)
class UnitCost:
    """Milliseconds of one unit.

    Attributes:
        alone: By what it computes in (`Way.unit`), of the unit; nothing where the engine refuses that.
        tail: By type, of what follows it in its segment; nothing where that type is not to be had.
    """

    alone: Mapping[str, float]
    tail: Mapping[str, float] = field(default_factory=dict)

    @property
    def plain(self) -> float:
        """In float."""
        return self.alone.get(FLOAT, 0.0)

    @property
    def coded(self) -> float:
        """In integers; as in float where it can't be."""
        return self.alone.get(CODES, self.plain)

    def won_behind(self, way: Way) -> float:
        """Return what the rest of the segment wins by the type of a way."""
        plain = self.tail.get(FLOAT, 0.0)
        return plain - self.tail.get(way.rest, plain)

    def of(self, way: Way) -> float | None:
        """Return what a way takes; None where the engine refuses it."""
        alone, tail = self.alone.get(way.unit), self.tail.get(way.rest)
        if way.unit in (FLOAT, CODES):
            alone = self.coded if way.unit == CODES else self.plain
        if alone is None and way.unit == way.rest and self.tail:
            alone = self.plain  # such as Shape, which is the same whatever floats are
        if alone is None or (tail is None and way.rest != FLOAT):
            return None
        return alone + (tail or 0.0)


@dataclass(frozen=True)
class Conversion:
    """Milliseconds of turning one number format into another, as a line over the number of elements.

    Attributes:
        start: Of no element.
        slope: Of one more.
    """

    start: float
    slope: float

    def of(self, elements: int) -> float:
        """Milliseconds of so many elements."""
        return max(0.0, self.start + self.slope * elements)


NOTHING = Conversion(0.0, 0.0)


@dataclass(frozen=True)
class Costs:
    """Everything that was timed.

    Attributes:
        units: One a unit, in order.
        to_codes: QuantizeLinear.
        to_floats: DequantizeLinear.
        cast: Cast between float types.
        timed: Parts that were run; the others came from the cache.
        rows: What was timed, for a file.
    """

    units: tuple[UnitCost, ...]
    to_codes: Conversion
    to_floats: Conversion
    cast: Conversion = NOTHING
    timed: int = 0
    rows: "tuple[CostRow, ...]" = ()


@dataclass(frozen=True)
class CostRow:
    """One unit in one precision.

    Attributes:
        unit: Its name.
        op: Its operator.
        inputs: Shapes of what it reads.
        key: What tells it from others.
        ms: Milliseconds.
    """

    unit: str
    op: str
    inputs: tuple[tuple[int, ...], ...]
    key: str
    ms: float


def time_units(
    parts: UnitParts,
    ways: Sequence[Sequence[Way]],
    engine: Engine,
    *,
    store: Cache | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    given: Mapping[str, float] | None = None,
) -> Costs:
    """Time every unit in its ways, each shape once.

    Args:
        parts: Cuts the units out.
        ways: For each unit, its ways.
        engine: What runs them.
        store: Where times are kept; None keeps none.
        progress: Told how many units are done.
        given: By key, times that need not be measured.

    Raises:
        EngineError: The engine does not run even one operator.
    """
    clock = Clock(engine, store, given)
    return cost_units(parts, ways, clock.milliseconds, progress, lambda: clock.timed)


def cost_units(
    parts: UnitParts,
    ways: Sequence[Sequence[Way]],
    milliseconds: Callable[[Part], float | None],
    progress: Callable[[int, int], None],
    timed: Callable[[], int] = lambda: 0,
) -> Costs:
    """Put together what units and conversions take; `milliseconds` times or estimates a part."""
    costs = []
    rows: dict[str, CostRow] = {}
    for done, (unit, own) in enumerate(zip(parts.units, ways, strict=True)):
        found: dict[str, dict[str, float]] = {"alone": {}, "tail": {}}
        rests = dict.fromkeys((FLOAT, *(way.rest for way in own)))
        for kind in dict.fromkeys((*rests, *(way.unit for way in own))):
            part = parts.alone(unit, kind)
            ms = None if part is None else milliseconds(part)
            if part is not None and ms is not None:
                found["alone"][kind] = ms
                rows[part.key] = cost_row(unit, part, ms)
        for rest in rests if len(rests) > 1 else ():
            ms = _tail(parts, unit, rest, milliseconds, found["alone"])
            if ms is not None:
                found["tail"][rest] = ms
        costs.append(UnitCost(**found) if FLOAT in found["alone"] else UnitCost({}))
        progress(done + 1, len(parts.units))
    sizes = conversion_sizes(parts.units, parts.seen)
    to_codes, to_floats = (
        line(milliseconds, op, sizes) for op in ("QuantizeLinear", "DequantizeLinear")
    )
    cast = line(milliseconds, "Cast", sizes) if parts.half else NOTHING
    return Costs(tuple(costs), to_codes, to_floats, cast, timed(), tuple(rows.values()))


def _tail(
    parts: UnitParts,
    unit: Unit,
    rest: str,
    milliseconds: Callable[[Part], float | None],
    alone: Mapping[str, float],
) -> float | None:
    """What a segment takes in a type beyond its unit; engines run some of it in the unit's kernel."""
    if not unit.tail:
        return 0.0
    part = parts.segment(unit, rest)
    whole = None if part is None else milliseconds(part)
    return None if whole is None else max(0.0, whole - alone.get(rest, 0.0))


def line(
    milliseconds: Callable[[Part], float | None], op: str, sizes: tuple[int, int]
) -> Conversion:
    """Times of an operator over the number of elements."""
    short, long = (milliseconds(conversion_part(op, size)) or 0.0 for size in sizes)
    slope = max(0.0, (long - short) / max(sizes[1] - sizes[0], 1))
    return Conversion(max(0.0, short - slope * sizes[0]), slope)


def cost_row(unit: Unit, part: Part, ms: float) -> CostRow:
    """Return what a file says of a part."""
    inputs = tuple(tuple(map(int, array.shape)) for array in part.feeds.values())
    return CostRow(unit.name, unit.node.op_type, inputs, part.key, ms)


def conversion_sizes(units: Sequence[Unit], seen: Mapping[str, Seen]) -> tuple[int, int]:
    """Numbers of elements that conversions are timed on: few, and the most that there are."""
    read = (seen.get(v.name or "") for u in units for v in u.node.inputs if v is not None)
    largest = max((look.size for look in read if look is not None), default=1)
    return min(4096, largest), largest


class Clock:
    """Times parts, remembers them by their keys, and takes off what an empty call costs."""

    def __init__(
        self, engine: Engine, store: Cache | None, given: Mapping[str, float] | None = None
    ) -> None:
        """Time what an empty call costs.

        Args:
            engine: What runs the parts.
            store: Where times are kept; None keeps none.
            given: Milliseconds by the key of a part, which are not measured again.
        """
        self.engine, self.store, self.given, self.timed = engine, store, given or {}, 0
        self.known: dict[str, float] = {}
        self.base = f"{engine} {_machine(engine)}"
        self.empty = 0.0
        self.empty = self.milliseconds(conversion_part("Relu", 1)) or 0.0

    def milliseconds(self, part: Part) -> float | None:
        """Milliseconds beyond an empty call; None where the engine refuses the part."""
        if part.key in self.given:
            return self.given[part.key]
        key = f"{self.base}\n{part.key}"
        if key not in self.known:
            entry = None if self.store is None else self.store.get(KIND, key)
            found = entry.meta.get("ms") if entry is not None else None
            if not isinstance(found, float):
                found = self._time(part)
                if found is None:
                    return None
                if self.store is not None:
                    self.store.put(KIND, key, {"ms": found}, {})
            self.known[key] = found
        return max(self.known[key] - self.empty, 1e-4)

    def _time(self, part: Part) -> float | None:
        self.timed += 1
        options = replace(self.engine.options, threads=1)
        with TemporaryDirectory(prefix="qgraph-") as folder, ExitStack() as stack:
            path = Path(folder) / "unit.onnx"
            onnx_io.save(part.graph, path)
            try:
                session = backend(self.engine.backend).open(path, options)
                stack.enter_context(session)
                session.run(part.feeds)
                if session.device != "cpu":  # no copies there and back, which a chain has not
                    session = OnDevice(session, part.feeds)
                return _median(session, part.feeds)
            except QGraphError:
                return None


def _median(session: Session, feeds: Mapping[str, NDArray[Any]]) -> float:
    """Least of the medians of some blocks, milliseconds: other work only makes it slower."""
    session.run(feeds)
    medians = []
    for _ in range(_ROUNDS):
        times: list[float] = []
        end = time.perf_counter() + _BLOCK_S
        while len(times) < _LEAST_RUNS or time.perf_counter() < end:
            start = time.perf_counter()
            session.run(feeds)
            times.append(time.perf_counter() - start)
        medians.append(statistics.median(times))
    return min(medians) * 1e3


def _machine(engine: Engine) -> str:
    """The processor and the engines' versions: on another, times are others."""
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return f"{processor_of(engine)} {' '.join(versions)}"


def processor_of(engine: Engine) -> str:
    """Name of what an engine computes on."""
    if engine.backend in ("onnxruntime-cpu", "openvino"):
        return processor()
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return processor()


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
