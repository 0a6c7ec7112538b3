"""Cuts a planned graph into segments, one a unit, as ONNX files that run one after the other.

A segment begins with a unit and ends in front of the next one. It is written twice: in float, and
with the unit in integers. What follows a unit is run again by running the segments behind it, on
values kept at the cut: nothing is computed that the unit does not change, and no weight is held
twice.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qgraph import onnx_io
from qgraph.encoding import INTEGERS, Encoding, dequantize
from qgraph.graph import Graph, Node, Value
from qgraph.search.prepared import Prepared, clone
from qgraph.search.units import Unit
from qgraph.subgraph import read_by, subgraph

INDEX = "segments.json"


@dataclass(frozen=True)
class Segment:
    """A part of the graph.

    Attributes:
        plain: Its file in float; empty where it has no node.
        coded: Its file with its unit in integers; empty for the first, which has no unit.
        reads: Names of values from outside.
        keeps: Names of values that later segments read, or graph outputs.
        drops: Names of values that nothing behind it reads.
        unit: Index of its unit; -1 for the part in front of the first.
    """

    plain: str
    coded: str
    reads: tuple[str, ...]
    keeps: tuple[str, ...]
    drops: tuple[str, ...]
    unit: int


@dataclass(frozen=True)
class Segments:
    """All segments of a graph, in order.

    Attributes:
        parts: The segments.
        outputs: Names of the graph's outputs.
    """

    parts: tuple[Segment, ...]
    outputs: tuple[str, ...]


def cut(graph: Graph, units: Sequence[Unit]) -> list[tuple[Unit | None, list[Node]]]:
    """Return the nodes of each segment in an order in which they can run.

    The activation function of a unit stands right behind its node.
    """
    starts = {unit.node: unit for unit in units}
    moved = {unit.activation for unit in units if unit.activation is not None}
    parts: list[tuple[Unit | None, list[Node]]] = [(None, [])]
    for node in graph.nodes():
        unit = starts.get(node)
        if unit is not None:
            parts.append((unit, unit.nodes))
        elif node not in moved:
            parts[-1][1].append(node)
    return parts


def write_segments(prepared: Prepared, units: Sequence[Unit], folder: Path) -> Segments:
    """Write all segments into a folder, with an index."""
    graph = prepared.graph
    parts = cut(graph, units)
    outputs = {value for value in graph.outputs}
    last: dict[Value, int] = {}
    for number, (_, nodes) in enumerate(parts):
        for node in nodes:
            last.update({value: number for value in read_by(node) if not value.is_initializer()})
    for value in outputs:
        last[value] = len(parts)
    written = []
    for number, (unit, nodes) in enumerate(parts):
        made = {out for node in nodes for out in node.outputs}
        reads = [v for v in _unique(v for n in nodes for v in read_by(n)) if v not in made]
        reads = [v for v in reads if not v.is_initializer() or v.is_graph_input()]
        keeps = [v for v in _unique(o for n in nodes for o in n.outputs) if last.get(v, -1) > number]
        dying = [v for v, end in last.items() if end == number and v not in made]
        plain = coded = ""
        if keeps:
            plain = f"{number}.onnx"
            onnx_io.save(subgraph(graph, nodes, reads, keeps), folder / plain)
        if keeps and unit is not None:
            coded = f"{number}.coded.onnx"
            onnx_io.save(_coded(prepared, unit, nodes, reads, keeps), folder / coded)
        written.append(
            Segment(
                plain,
                coded,
                _names(reads),
                _names(keeps),
                _names(dying),
                -1 if unit is None else unit.index,
            )
        )
    found = Segments(tuple(written), _names(graph.outputs))
    (folder / INDEX).write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found


def read_segments(folder: Path) -> Segments:
    """Read the index of a folder of segments."""
    known = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    parts = [
        Segment(**{k: tuple(v) if isinstance(v, list) else v for k, v in part.items()})
        for part in known["parts"]
    ]
    return Segments(tuple(parts), tuple(known["outputs"]))


def _coded(
    prepared: Prepared,
    unit: Unit,
    nodes: Sequence[Node],
    reads: Sequence[Value],
    keeps: Sequence[Value],
) -> Graph:
    """The segment with the unit's weights, bias, inputs and result as integers give them."""
    weights: dict[Value, Any] = {}
    for (name, index), weight in prepared.weights.items():
        value = unit.node.inputs[index] if name == unit.name else None
        if value is not None:
            weights[value] = dequantize(weight.codes, weight.encoding)
    part = subgraph(prepared.graph, nodes, reads, keeps)
    inner = {node.name: node for node in part.nodes()}
    own = inner[unit.node.name]
    for value, array in weights.items():
        index = list(unit.node.inputs).index(value)
        part.set_input(own, index, part.constant(f"{value.name}_coded", array))
    bias = prepared.biases.get(unit.name)
    if bias is not None and bias.holder in inner:
        part.set_input(inner[bias.holder], bias.index, part.constant("coded_bias", bias.array))
    for index, value in unit.reads.items():
        source = own.inputs[index]
        assert source is not None
        pair = _pair(part, source, prepared.encodings[value.name or ""], own)
        part.set_input(own, index, pair)
    if unit.writes is not None:
        _code_result(part, inner[unit.nodes[-1].name], prepared.encodings[unit.writes.name or ""])
    part.drop_unread_initializers()
    return part


def _code_result(part: Graph, last: Node, encoding: Encoding) -> None:
    result = last.outputs[0]
    uses = list(result.uses())
    following = next(iter(node for node in part.nodes() if any(u.node is node for u in uses)), None)
    outside = [i for i, value in enumerate(part.main.outputs) if value is result]
    pair = _pair(part, result, encoding, following)
    for use in uses:
        part.set_input(use.node, use.idx, pair)
    name = result.name
    for index in outside:
        result.name, pair.name = f"{name}_plain", name
        part.main.outputs[index] = pair


def _pair(part: Graph, value: Value, encoding: Encoding, before: Node | None) -> Value:
    """Quantize a value and back, in front of a node or at the end."""
    dtype = INTEGERS[encoding.dtype][2]
    scale = part.constant(f"{value.name}_scale", encoding.scale)
    zero = part.constant(f"{value.name}_zero", encoding.zero_point.astype(dtype))
    after = None if before is not None else list(part.main)[-1]
    q = part.insert("QuantizeLinear", [value, scale, zero], before=before, after=after)
    q.outputs[0].type = ir.TensorType(zero.dtype)  # type: ignore[arg-type]
    after = None if before is not None else q
    dq = part.insert(
        "DequantizeLinear", [q.outputs[0], scale, zero], before=before, after=after, like=value
    )
    return dq.outputs[0]


def _unique(values: Iterable[Value]) -> list[Value]:
    return list(dict.fromkeys(values))


def _names(values: Iterable[Value]) -> tuple[str, ...]:
    return tuple(value.name or "" for value in values)
