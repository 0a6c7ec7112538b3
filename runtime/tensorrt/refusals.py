"""What the library's parser would refuse of a model, node by node; nothing is built."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgraph.runtime.tensorrt.library import Library


@dataclass(frozen=True)
class Refused:
    """A node that the parser does not take.

    Attributes:
        index: Its place among the model's nodes, or in the body that it stands in; -1 where the
            parser names none.
        name: Its name; may be empty.
        op: Its operator; may be empty.
        reason: What the parser says; empty where it only leaves the node out of every part of the
            model that it takes.
    """

    index: int
    name: str
    op: str
    reason: str


def refused_nodes(library: Library, model: Path, nodes: int) -> list[Refused] | None:
    """Ask the parser about a whole model.

    Args:
        library: The library.
        model: ONNX file; external data lies beside it.
        nodes: Number of the model's nodes, those of bodies not counted.

    Returns:
        Its refusals, none of them twice; None where it can't be started.
    """
    log = library.logger()
    builder = library.module.Builder(log)
    if builder is None:
        return None
    network = builder.create_network(library.network_flags())
    parser = library.module.OnnxParser(network, log)
    if parser.supports_model_v2(model.read_bytes(), str(model)):
        return []
    said = list(dict.fromkeys(_errors(parser)))
    taken = {n for part in range(parser.num_subgraphs) for n in parser.get_subgraph_nodes(part)}
    named = {each.index for each in said}
    left = sorted(set(range(nodes)) - taken - named)
    return said + [Refused(index, "", "", "") for index in left]


def _errors(parser: Any) -> Iterator[Refused]:
    for each in map(parser.get_error, range(parser.num_errors)):
        yield Refused(each.node(), each.node_name(), each.node_operator(), each.desc())
