"""Cuts a planned graph into segments, one a unit, as ONNX files that run one after the other.

A segment begins with a unit and ends in front of the next one. It is written in float, and once more
for each error that its unit may make (`qgraph.search.probes`). What follows a unit is run again by running the
segments behind it, on values kept at the cut: nothing is computed that the unit does not change, and no weight
is held twice.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qgraph import onnx_io
from qgraph.graph import Node, Value
from qgraph.search.prepared import Prepared
from qgraph.search.probes import INTEGERS, Kind, Probe
from qgraph.search.units import Unit, cut
from qgraph.subgraph import read_by, subgraph

INDEX = "segments.json"
# Segments in a block: half of them, on average, run one by one before a block's end is reached.
BLOCK = 8


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


def write_segments(
    prepared: Prepared,
    units: Sequence[Unit],
    folder: Path,
    probes: Mapping[Kind, Probe] = INTEGERS,
) -> Segments:
    """Write all blocks and their segments into a folder, with an index.

    Args:
        prepared: The calibrated model.
        units: Its units.
        folder: Where files go.
        probes: By kind, what writes the error of a unit into its segment.
    """
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
            made = _write(prepared, nodes, last, range(number, number + 1), folder, unit, probes)
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
    probes: Mapping[Kind, Probe] = INTEGERS,
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
    files: dict[Kind, str] = {}
    if keeps:
        plain = f"{name}.onnx"
        onnx_io.save(subgraph(graph, nodes, reads, keeps), folder / plain)
    if keeps and unit is not None:
        for number, (kind, make) in enumerate(probes.items()):
            part = subgraph(graph, nodes, reads, keeps)
            if make(prepared, unit, part):
                files[kind] = f"{name}.{number}.onnx"
                onnx_io.save(part, folder / files[kind])
    index = -1 if unit is None else unit.index
    return Segment(plain, files, _names(reads), _names(keeps), _names(drops), index)


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


def _names(values: Iterable[Value]) -> tuple[str, ...]:
    return tuple(value.name or "" for value in values)
