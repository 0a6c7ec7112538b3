"""What each unit takes in float and in integers on the engine, measured once for each shape.

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
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph import onnx_io
from qgraph.cache import Cache
from qgraph.errors import QGraphError
from qgraph.fingerprint import Fingerprints, attributes_of
from qgraph.graph import Graph, Node, Value
from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions, Session
from qgraph.search.observed import Seen
from qgraph.search.units import Unit
from qgraph.subgraph import read_by, subgraph

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
        return f"{self.backend} {self.options.float_precision}"


@dataclass(frozen=True)
class UnitCost:
    """Milliseconds of one unit.

    Attributes:
        plain: In float.
        coded: In integers.
    """

    plain: float
    coded: float


@dataclass(frozen=True)
class Conversion:
    """Milliseconds of turning floats into codes, or back, as a line over the number of elements.

    Attributes:
        start: Of no element.
        slope: Of one more.
    """

    start: float
    slope: float

    def of(self, elements: int) -> float:
        """Milliseconds of so many elements."""
        return max(0.0, self.start + self.slope * elements)


@dataclass(frozen=True)
class Costs:
    """Everything that was timed.

    Attributes:
        units: One a unit, in order.
        to_codes: QuantizeLinear.
        to_floats: DequantizeLinear.
        timed: Parts that were run; the others came from the cache.
        rows: What was timed, for a file.
    """

    units: tuple[UnitCost, ...]
    to_codes: Conversion
    to_floats: Conversion
    timed: int
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


@dataclass(frozen=True, eq=False)
class Part:
    """A small model to be timed, with what tells it from others.

    Attributes:
        graph: The model.
        feeds: Arrays for its inputs.
        key: Operators, attributes, shapes and types; not weights.
    """

    graph: Graph
    feeds: dict[str, NDArray[Any]]
    key: str


def time_units(
    floating: Graph,
    integer: Graph,
    units: Sequence[Unit],
    seen: Mapping[str, Seen],
    engine: Engine,
    *,
    store: Cache | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    given: Mapping[str, float] | None = None,
) -> Costs:
    """Time every unit in both precisions, each shape once.

    Args:
        floating: The float graph.
        integer: The same with all units in integers.
        units: The units of the float graph.
        seen: What values look like.
        engine: What runs them.
        store: Where times are kept; None keeps none.
        progress: Told how many units are done.
        given: By key, times that need not be measured.

    Raises:
        EngineError: The engine does not run even one operator.
    """
    clock = Clock(engine, store, given)
    nodes = {node.name: node for node in integer.nodes()}
    costs = []
    rows: dict[str, CostRow] = {}
    for done, unit in enumerate(units):
        parts = (
            plain_part(floating, unit, seen),
            coded_part(integer, nodes[unit.node.name], unit, seen),
        )
        plain, coded = map(clock.milliseconds, parts)
        for part, ms in zip(parts, (plain, coded), strict=True):
            if ms is not None:
                rows[part.key] = cost_row(unit, part, ms)
        costs.append(
            UnitCost(plain, coded if coded is not None else plain) if plain else UnitCost(0, 0)
        )
        progress(done + 1, len(units))
    sizes = conversion_sizes(units, seen)
    to_codes, to_floats = (clock.line(op, sizes) for op in ("QuantizeLinear", "DequantizeLinear"))
    return Costs(tuple(costs), to_codes, to_floats, clock.timed, tuple(rows.values()))


def cost_row(unit: Unit, part: Part, ms: float) -> CostRow:
    """Return what a file says of a part."""
    inputs = tuple(tuple(map(int, array.shape)) for array in part.feeds.values())
    return CostRow(unit.name, unit.node.op_type, inputs, part.key, ms)


def conversion_sizes(units: Sequence[Unit], seen: Mapping[str, Seen]) -> tuple[int, int]:
    """Numbers of elements that conversions are timed on: few, and the most that there are."""
    largest = max((seen[v.name or ""].size for u in units for v in u.reads.values()), default=1)
    return min(4096, largest), largest


def plain_part(graph: Graph, unit: Unit, seen: Mapping[str, Seen]) -> Part:
    """The unit in float."""
    names = {value: value.name or "" for node in unit.nodes for value in read_by(node)}
    return make_part(graph, unit.nodes, [unit.result], names, seen)


def coded_part(graph: Graph, node: Node, unit: Unit, seen: Mapping[str, Seen]) -> Part:
    """The unit in integers: from the codes that it reads to those that it hands out."""
    nodes, names = [node], {}
    for index, value in enumerate(node.inputs):
        producer = None if value is None else value.producer()
        if value is None:
            continue
        if producer is None or producer.op_type != "DequantizeLinear":
            names[value] = value.name or ""
            continue
        nodes.insert(0, producer)
        codes, read = producer.inputs[0], unit.reads.get(index)
        if codes is not None and read is not None:
            names[codes] = read.name or ""
    last = node
    while unit.writes is not None and last.op_type != "QuantizeLinear":
        reader = graph.only_reader(last.outputs[0])
        if reader is None or (reader.op_type != "QuantizeLinear" and len(nodes) > 12):
            break
        nodes.append(reader)
        last = reader
    return make_part(graph, list(dict.fromkeys(nodes)), [last.outputs[0]], names, seen)


def make_part(
    graph: Graph,
    nodes: Sequence[Node],
    outputs: Sequence[Value],
    names: Mapping[Value, str],
    seen: Mapping[str, Seen],
) -> Part:
    """Cut out nodes; `names` says under which name the original knows what they read."""
    made = {out for node in nodes for out in node.outputs}
    reads = [v for v in dict.fromkeys(v for n in nodes for v in read_by(n)) if v not in made]
    inputs = [v for v in reads if not graph.is_constant(v)]
    part = subgraph(graph, nodes, inputs, outputs)
    rng, feeds, key = np.random.default_rng(0), {}, []
    for value, inner in zip(inputs, part.main.inputs, strict=True):
        look = seen[names.get(value, value.name or "")]
        dtype = look.dtype if value.dtype is None else value.dtype.numpy()
        inner.shape = ir.Shape(look.shape)
        inner.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
        drawn = (
            rng.normal(0, 1, look.shape)
            if np.dtype(dtype).kind == "f"
            else rng.integers(0, 100, look.shape)
        )
        feeds[inner.name or ""] = np.asarray(drawn).astype(dtype)
        key.append(f"in {dtype} {look.shape}")
    for out in part.main.outputs:
        out.shape = None
    return Part(part, feeds, "\n".join([*key, *operators(part)]))


def operators(part: Graph) -> list[str]:
    """Describe a graph's operators: attributes, shapes and types of constants, not their values."""
    prints, lines = Fingerprints(part), []
    for node in part.nodes():
        constants = [t for t in map(part.tensor, node.inputs) if t is not None]
        shapes = [f"{t.dtype.name}{list(t.shape.numpy())}" for t in constants]
        lines.append(f"{node.op_type} {sorted(attributes_of(node, prints).items())} {shapes}")
    return lines


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

    def line(self, op: str, sizes: tuple[int, int]) -> Conversion:
        """Times of an operator over the number of elements."""
        short, long = (self.milliseconds(conversion_part(op, size)) or 0.0 for size in sizes)
        slope = max(0.0, (long - short) / max(sizes[1] - sizes[0], 1))
        return Conversion(max(0.0, short - slope * sizes[0]), slope)

    def _time(self, part: Part) -> float | None:
        self.timed += 1
        options = EngineOptions(1, self.engine.options.float_precision)
        with TemporaryDirectory(prefix="qgraph-") as folder, ExitStack() as stack:
            path = Path(folder) / "unit.onnx"
            onnx_io.save(part.graph, path)
            try:
                session = backend(self.engine.backend).open(path, options)
                stack.enter_context(session)
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


def conversion_part(op: str, elements: int) -> Part:
    """A model of one operator."""
    codes = op == "DequantizeLinear"
    data = ir.Value(name="x")
    data.shape = ir.Shape((1, elements))
    data.type = ir.TensorType(ir.DataType.UINT8 if codes else ir.DataType.FLOAT)
    constants = []
    if op != "Relu":
        for name, array in (("scale", np.float32(0.1)), ("zero", np.uint8(3))):
            value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
            constants.append(value)
    node = ir.Node("", op, [data, *constants], name="op")
    node.outputs[0].name = "y"
    inside = ir.Graph(
        [data],
        node.outputs,
        nodes=[node],
        initializers=constants,
        name="single",
        opset_imports={"": 17},
    )
    feeds = {"x": np.full((1, elements), 7, np.uint8 if codes else np.float32)}
    return Part(Graph(ir.Model(inside, ir_version=9)), feeds, f"{op} {elements}")


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
