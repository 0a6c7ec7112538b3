"""The engine's own parser as the last rule: what TensorRT says, where it is installed."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qgraph import onnx_io
from qgraph.graph import Node
from qgraph.lint.rule import Finding
from qgraph.lint.view import View, op_name
from qgraph.passes.rewrites._qdq import label
from qgraph.text import one_line

if TYPE_CHECKING:
    from qgraph.runtime.tensorrt.refusals import Refused

_LONGEST = 300
_UNSAID = "it is in no part of the model that the parser takes"


def ask(view: View) -> list[Finding] | None:
    """Ask the parser of TensorRT or TensorRT-RTX about every node.

    Nothing is built, and no GPU is needed.

    Returns:
        One finding a refused node; None where neither is installed.
    """
    from qgraph.errors import EngineError
    from qgraph.runtime.tensorrt.library import load_library
    from qgraph.runtime.tensorrt.refusals import refused_nodes

    try:
        library = load_library()
    except EngineError:
        return None
    nodes = list(view.graph.main)
    with tempfile.TemporaryDirectory(prefix="qgraph-lint-") as folder:
        path = Path(folder) / "model.onnx"
        onnx_io.save(view.graph, path)
        refused = refused_nodes(library, path, len(nodes))
    if refused is None:
        return None
    return [_finding(each, nodes, f"the parser of {library}") for each in refused]


def _finding(refused: "Refused", nodes: Sequence[Node], source: str) -> Finding:
    """Return a finding; a node without a name is found by its place, if its operator fits."""
    name, op = refused.name, refused.op
    known = nodes[refused.index] if 0 <= refused.index < len(nodes) else None
    if known is not None and not name and op in ("", known.op_type):
        name, op = label(known), op_name(known)
    return Finding(
        node=name,
        op=op,
        engine="tensorrt",
        rule="parser",
        severity="refused",
        what="the parser refuses it",
        detail=one_line(refused.reason or _UNSAID)[:_LONGEST],
        source=source,
    )
