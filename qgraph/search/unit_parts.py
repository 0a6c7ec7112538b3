"""Small models of one unit in one of its ways, for its time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph import flow, onnx_io
from qgraph.context import Context
from qgraph.data import open_data
from qgraph.errors import QGraphError
from qgraph.fingerprint import Fingerprints, attributes_of
from qgraph.graph import Graph, Node, Value
from qgraph.job import Job
from qgraph.passes.half_choose import HALF
from qgraph.passes.half_rewrite import rewrite
from qgraph.passes.half_types import slots
from qgraph.pipeline import Pass, Pipeline
from qgraph.search.float8_pairs import Pairs, write_pairs
from qgraph.search.observed import Seen
from qgraph.search.prepared import clone
from qgraph.search.units import Unit
from qgraph.search.ways import CODES, DYNAMIC, FLOAT, FLOAT8, HALVES, WIDE, Way
from qgraph.subgraph import read_by, subgraph

DTYPES = {"fp16": HALF["float16"], "bf16": HALF["bfloat16"]}


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


@dataclass(eq=False)
class UnitParts:
    """Cuts units out of a model, in any of their ways.

    Attributes:
        job: Target and options.
        floating: The float graph.
        integer: The same with all units in integers that can be.
        units: The units of the float graph.
        seen: What values look like.
        half: Type of what is neither in float32 nor in codes, where there is one.
        pairs: By name of a product, its Q/DQ in float8, where there are some.
        wide: The model with all units in integers with activations in 16 bits, where there are such.
    """

    job: Job
    floating: Graph
    integer: Graph
    units: Sequence[Unit]
    seen: Mapping[str, Seen]
    half: str = ""
    pairs: Mapping[str, Pairs] = field(default_factory=dict)
    wide: Graph | None = None

    def alone(self, unit: Unit, kind: str) -> Part | None:
        """Return a unit in what it computes in (`Way.unit`); None where it can't be had."""
        if kind in (CODES, WIDE):
            graph = self.integer if kind == CODES else self.wide
            node = self._nodes[kind].get(unit.node.name)
            if graph is None or node is None:
                return None
            return coded_part(graph, node, unit, self.seen)
        part = plain_part(self.floating, unit, self.seen)
        if kind == FLOAT:
            return part
        if kind in HALVES:
            return in_half(part, kind)
        if kind == FLOAT8 and self.pairs:
            return self._paired(part, unit)
        return self._written(part, kind)

    def segment(self, unit: Unit, kind: str) -> Part | None:
        """Return a unit with what follows it in its segment, all in one float type."""
        nodes = [*unit.nodes, *unit.tail]
        made = {out: None for node in nodes for out in node.outputs}
        inside = set(nodes)
        outputs = [
            value
            for value in made
            if value.is_graph_output() or any(use.node not in inside for use in value.uses())
        ]
        names = {value: value.name or "" for node in nodes for value in read_by(node)}
        try:
            part = make_part(self.floating, nodes, outputs, names, self.seen)
        except KeyError:  # reads what no run hands out, such as a sequence
            return None
        return part if kind == FLOAT else in_half(part, kind)

    @cached_property
    def _nodes(self) -> dict[str, dict[str | None, Node]]:
        wide = () if self.wide is None else self.wide.nodes()
        integer = {node.name: node for node in self.integer.nodes()}
        return {CODES: integer, WIDE: {node.name: node for node in wide}}

    def _paired(self, part: Part, unit: Unit) -> Part | None:
        node = next(node for node in part.graph.nodes() if node.name == unit.name)
        write_pairs(part.graph, node, self.pairs[unit.name])
        return in_half(part, self.half) or keyed(part)

    def _written(self, part: Part, kind: str) -> Part | None:
        """The unit by the passes that write it into a whole model."""
        job, weight = self.job, Way(kind).weight
        options = {name: dict(values) for name, values in job.recipe.passes.items()}
        own: dict[str, Any]
        if kind == DYNAMIC:
            deciding, data, own = "dynamic_int8", None, {"min_elements": 1}
        elif weight is None:
            deciding, data = "fp8", open_data([part.feeds], part.graph.signature())
            own = {"head": True, "costs": False, "min_elements": 1}
        else:
            deciding, data, own = "weight_only", None, rounded_weights(*weight)
        options[deciding] = options.get(deciding, {}) | own
        graph = clone(part.graph)
        context = Context(target=job.target, recipe=job.recipe, data=data)
        first = () if kind == DYNAMIC else ("linear_to_matmul",)
        passes = flow.build((*first, deciding, "drop_dead"), options)
        try:
            stages = Pipeline(passes).run(graph, context)
            if not any(s.report.changed for s in stages if s.name == deciding):
                return None
            found = Part(graph, part.feeds, "")
            if self.half:
                found = in_half(found, self.half) or found
            kernels: list[Pass] = flow.kernel_passes(kind, options, job.target)
            Pipeline(kernels, given=found.graph.facts.present()).run(found.graph, context)
        except QGraphError:
            return None
        return keyed(found)


def rounded_weights(bits: int, group: int) -> dict[str, Any]:
    """Return options of `weight_only` that round all layers at once: times don't depend on values."""
    return {
        "layers": (f"*={bits}:{group}",),
        "method": "rtn",
        "scaling": False,
        "clip": "none",
        "head": True,
        "embeddings": False,
        "min_elements": 1,
        "skip_worse": 0,
        "batch": None,
    }


def in_half(part: Part, kind: str) -> Part | None:
    """Return a part in a half type, inputs and outputs too; None where nothing of it can be."""
    dtype = DTYPES[kind]
    graph = clone(part.graph)
    if any(out.dtype is None for node in graph.nodes() for out in node.outputs):
        onnx_io.infer_shapes(graph)
    found = {}
    for node in graph.nodes():
        able = slots(graph, node, dtype)
        if not isinstance(able, str) and able:
            found[node] = able
    if not found:
        return None
    rewrite(graph, found, dtype)
    feeds = dict(part.feeds)
    for value in list(graph.main.inputs):
        readers = [use.node for use in value.uses()]
        casts = [
            node for node in readers if node.op_type == "Cast" and node.outputs[0].dtype == dtype
        ]
        if value.dtype == ir.DataType.FLOAT and casts and len(casts) == len(readers):
            value.type = ir.TensorType(dtype)
            feeds[value.name or ""] = feeds[value.name or ""].astype(dtype.numpy())
            for cast in casts:
                graph.replace(cast.outputs[0], value)
                graph.remove(cast)
    for place, value in enumerate(graph.main.outputs):
        last = value.producer()
        inner = None if last is None or last.op_type != "Cast" else last.inputs[0]
        if last is None or inner is None or inner.dtype != dtype or list(value.uses()):
            continue
        if not inner.is_graph_output():
            graph.main.outputs[place] = inner
            graph.remove(last)
    return keyed(replace(part, graph=graph, feeds=feeds))


def keyed(part: Part) -> Part:
    """Return a part with the key of its graph."""
    inputs = [f"in {array.dtype} {array.shape}" for array in part.feeds.values()]
    return replace(part, key="\n".join([*inputs, *operators(part.graph)]))


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


def conversion_part(op: str, elements: int) -> Part:
    """A model of one operator."""
    codes, cast = op == "DequantizeLinear", op == "Cast"
    data = ir.Value(name="x")
    data.shape = ir.Shape((1, elements))
    data.type = ir.TensorType(ir.DataType.UINT8 if codes else ir.DataType.FLOAT)
    constants = []
    if op not in ("Relu", "Cast"):
        for name, array in (("scale", np.float32(0.1)), ("zero", np.uint8(3))):
            value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
            constants.append(value)
    attributes = [ir.AttrInt64("to", int(DTYPES["fp16"]))] if cast else []
    node = ir.Node("", op, [data, *constants], attributes, name="op")
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
