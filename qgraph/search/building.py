"""Builds one whole model in a precision: here, or as a task in another process.

A task gets the float model as a file and everything else as plain data; it hands back files and
what later steps read of the graph's facts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qgraph import flow, onnx_io
from qgraph.context import Context
from qgraph.data import Feeds, open_data
from qgraph.errors import QGraphError
from qgraph.graph import Graph
from qgraph.kv_cache import cache_axes
from qgraph.pipeline import Pipeline, Stage
from qgraph.recipe import Recipe
from qgraph.target import Target
from qgraph.target import target as named_target
from qgraph.tasks import SharedFolder

FLOAT = "float.onnx"
FAILURES = (QGraphError, ValueError, ArithmeticError, RuntimeError, LookupError)
NOTHING = "nothing of the model can be in it"
# Passes that put something of the model into codes.
_DECIDING = ("dynamic_int8", "weight_only", "insert_qdq", "fp8")
# Facts that an artifact is written from.
_FACTS = ("plan", "encodings", "weights", "io")


@dataclass(frozen=True)
class Order:
    """What to build.

    Attributes:
        precision: The precision.
        draft: Whether weights in few bits are rounded to nearest, without data.
        options: Options of passes.
        exclude: Globs of nodes and operators that stay in float.
    """

    precision: str
    draft: bool
    options: Mapping[str, Mapping[str, Any]]
    exclude: tuple[str, ...]

    @property
    def model(self) -> str:
        """Name of the model's file."""
        return f"{self.precision}{'.draft' if self.draft else ''}.onnx"

    @property
    def judged(self) -> str:
        """Name of the file with the same in operators that the reference has."""
        return f"{self.precision}.judged.onnx"


@dataclass(frozen=True, eq=False)
class Built:
    """What came of an order.

    Attributes:
        note: Why there is no model; empty where there is one.
        graph: The model.
        stages: What passes did.
        judged: Whether there is a file with the same in operators that the reference has.
    """

    note: str = ""
    graph: Graph | None = None
    stages: list[Stage] = field(default_factory=list)
    judged: bool = False


@dataclass(frozen=True, eq=False)
class Parcel:
    """The same as another process hands it back.

    Attributes:
        built: Without the graph.
        files: Contents by name.
        facts: Of the graph.
    """

    built: Built
    files: Mapping[str, bytes]
    facts: Mapping[str, Any]


def build(graph: Graph, context: Context, target: Target, order: Order, folder: Path) -> Built:
    """Build a model and write it; a failure is a note, since a candidate is only an offer.

    Args:
        graph: The float model; it is rewritten.
        context: What passes are told.
        target: The target.
        order: What to build.
        folder: Where files go.
    """
    try:
        return _built(graph, context, target, order, folder)
    except FAILURES as error:
        return Built(str(error) or type(error).__name__)


def build_shared(
    folder: SharedFolder,
    order: Order,
    target: str,
    recipe: Recipe,
    feeds: list[Feeds] | None,
    seed: int,
) -> Parcel:
    """Build a model of a float one that was shared: a task."""
    with folder.opened() as given, TemporaryDirectory(prefix="qgraph-") as scratch:
        graph = onnx_io.load(given / FLOAT)
        data = None
        if feeds is not None:
            data = open_data(feeds, graph.signature(), caches=cache_axes(graph))
        context = Context(
            target=named_target(target), recipe=recipe, data=data, exclude=order.exclude, seed=seed
        )
        built = build(graph, context, context.target, order, Path(scratch))
        if built.graph is None:
            return Parcel(built, {}, {})
        facts = {name: getattr(built.graph.facts, name) for name in _FACTS}
        files = {path.name: path.read_bytes() for path in sorted(Path(scratch).iterdir())}
        return Parcel(Built("", None, built.stages, built.judged), files, facts)


def unpack(parcel: Parcel, order: Order, folder: Path, tell: Callable[[str], None]) -> Built:
    """Write the files of a parcel and return what was built."""
    built = parcel.built
    if built.note:
        return built
    for name, content in parcel.files.items():
        (folder / name).write_bytes(content)
    graph = onnx_io.load(folder / order.model)
    for name, fact in parcel.facts.items():
        if fact is not None:
            setattr(graph.facts, name, fact)
    tell(f"{order.precision}: built by a task")
    return Built("", graph, built.stages, built.judged)


def _built(graph: Graph, context: Context, target: Target, order: Order, folder: Path) -> Built:
    precision = order.precision
    passes = flow.quantizing_passes(precision, order.options, target)
    stages = Pipeline(passes).run(graph, context)
    deciding = ("half",) if precision in ("fp16", "bf16") else _DECIDING
    if not any(stage.report.changed for stage in stages if stage.name in deciding):
        return Built(NOTHING)
    kernels = flow.kernel_passes(precision, order.options, target)
    if kernels:
        onnx_io.save(graph, folder / order.judged)
    stages += Pipeline(kernels, given=graph.facts.present()).run(graph, context)
    onnx_io.save(graph, folder / order.model)
    return Built("", graph, stages, bool(kernels))
