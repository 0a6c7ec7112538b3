"""Cuts a planned graph into segments, one a unit, as ONNX files that run one after the other.

A segment begins with a unit and ends in front of the next one. It is written in float, with the
unit in integers that read codes, and with the unit in float and its result in codes. What follows a unit is run again by running the segments behind it, on
values kept at the cut: nothing is computed that the unit does not change, and no weight is held
twice.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from qgraph import onnx_io
from qgraph.encoding import INTEGERS, Encoding, dequantize
from qgraph.graph import Graph, Node, Value
from qgraph.search.prepared import Prepared
from qgraph.search.units import Unit
from qgraph.subgraph import read_by, subgraph

INDEX = "segments.json"
# Segments in a block: half of them, on average, run one by one before a block's end is reached.
BLOCK = 8
# Where an error enters: `read`: the unit computes in integers, of codes. `written`: its result
# becomes codes. Readers in integers have that error in their own, and in their corrected bias.
Kind = Literal["read", "written"]


@dataclass(frozen=True)
class Segment:
    """A part of the graph.

    Attributes:
        plain: Its file in float; empty where it has no node.
        probes: By kind of probe, its file with that error in it; none for the first, which has no unit.
        reads: Names of values from outside.
        keeps: Names of values that later segments read, or graph outputs.
        drops: Names of values that nothing behind it reads.
        unit: Index of its unit; -1 for the part in front of the first.
    """

    plain: str
    probes: dict[Kind, str]
    reads: tuple[str, ...]
    keeps: tuple[str, ...]
    drops: tuple[str, ...]
    unit: int


@dataclass(frozen=True)
class Block:
    """Some segments as one graph: what errors from before it are carried through.

    Engines run one long graph in a third of the time of its pieces.

    Attributes:
        segments: Its segments.
        whole: All of it, in float.
    """

    segments: tuple[Segment, ...]
    whole: Segment


@dataclass(frozen=True)
class Segments:
    """All of a graph, in order.

    Attributes:
        blocks: The blocks.
        outputs: Names of the graph's outputs.
    """

    blocks: tuple[Block, ...]
    outputs: tuple[str, ...]

    @property
    def parts(self) -> list[Segment]:
        """All segments."""
        return [segment for block in self.blocks for segment in block.segments]


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
    """Write all blocks and their segments into a folder, with an index."""
    graph = prepared.graph
    parts = cut(graph, units)
    last: dict[Value, int] = {}
    for number, (_, nodes) in enumerate(parts):
        for node in nodes:
            last.update({v: number for v in read_by(node) if not v.is_initializer()})
    last.update(dict.fromkeys(graph.outputs, len(parts)))
    blocks = []
    for start in range(0, len(parts), BLOCK):
        numbers = range(start, min(start + BLOCK, len(parts)))
        segments = []
        for number in numbers:
            unit, nodes = parts[number]
            made = _write(prepared, nodes, last, range(number, number + 1), folder, unit)
            segments.append(made)
        every = [node for number in numbers for node in parts[number][1]]
        blocks.append(Block(tuple(segments), _write(prepared, every, last, numbers, folder)))
    found = Segments(tuple(blocks), _names(graph.outputs))
    (folder / INDEX).write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found


def _write(
    prepared: Prepared,
    nodes: Sequence[Node],
    last: dict[Value, int],
    numbers: range,
    folder: Path,
    unit: Unit | None = None,
) -> Segment:
    """Write some nodes, and with the errors of their unit; `last` says where values are read last."""
    graph = prepared.graph
    made = {out for node in nodes for out in node.outputs}
    read = dict.fromkeys(value for node in nodes for value in read_by(node))
    reads = [v for v in read if v not in made and (not v.is_initializer() or v.is_graph_input())]
    results = [out for node in nodes for out in node.outputs]
    keeps = [value for value in results if last.get(value, -1) >= numbers.stop]
    drops = [value for value, end in last.items() if end in numbers and value not in made]
    name = f"{numbers.start}-{numbers.stop}"
    plain = ""
    probes: dict[Kind, str] = {}
    if keeps:
        plain = f"{name}.onnx"
        onnx_io.save(subgraph(graph, nodes, reads, keeps), folder / plain)
    if keeps and unit is not None:
        for kind, make in _PROBES.items():
            part = subgraph(graph, nodes, reads, keeps)
            if make(prepared, unit, part):
                probes[kind] = f"{name}.{kind}.onnx"
                onnx_io.save(part, folder / probes[kind])
    index = -1 if unit is None else unit.index
    return Segment(plain, probes, _names(reads), _names(keeps), _names(drops), index)


def read_segments(folder: Path) -> Segments:
    """Read the index of a folder of segments."""
    known = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    blocks = [
        Block(tuple(map(_segment, block["segments"])), _segment(block["whole"]))
        for block in known["blocks"]
    ]
    return Segments(tuple(blocks), tuple(known["outputs"]))


def _segment(known: dict[str, Any]) -> Segment:
    names = {key: tuple(known[key]) for key in ("reads", "keeps", "drops")}
    return Segment(plain=known["plain"], probes=known["probes"], unit=known["unit"], **names)


def _read(prepared: Prepared, unit: Unit, part: Graph) -> bool:
    """Give the unit the inputs, weights and bias that integers have."""
    inner = {node.name: node for node in part.nodes()}
    own = inner[unit.node.name]
    for (name, index), weight in prepared.weights.items():
        if name == unit.name:
            array = dequantize(weight.codes, weight.encoding)
            part.set_input(own, index, part.constant(f"coded_{index}", array))
    bias = prepared.biases.get(unit.name)
    if bias is not None and bias.holder in inner:
        part.set_input(inner[bias.holder], bias.index, part.constant("coded_bias", bias.array))
    for index, value in unit.reads.items():
        source = own.inputs[index]
        assert source is not None
        pair = _pair(part, source, prepared.encodings[value.name or ""], own)
        part.set_input(own, index, pair)
    part.drop_unread_initializers()
    return True


def _written(prepared: Prepared, unit: Unit, part: Graph) -> bool:
    """Turn the unit's result into codes and back."""
    if unit.writes is None:
        return False
    inner = {node.name: node for node in part.nodes()}
    encoding = prepared.encodings[unit.writes.name or ""]
    _code_result(part, inner[unit.nodes[-1].name], encoding)
    return True


_PROBES: dict[Kind, Callable[[Prepared, Unit, Graph], bool]] = {"read": _read, "written": _written}


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


def _names(values: Iterable[Value]) -> tuple[str, ...]:
    return tuple(value.name or "" for value in values)
