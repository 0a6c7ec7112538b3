"""The engine's own parser as the last rule: what TensorRT says, where it is installed."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qgraph import onnx_io
from qgraph.lint.rule import Finding
from qgraph.lint.view import View
from qgraph.text import one_line

_LONGEST = 300


def ask(view: View) -> list[Finding] | None:
    """Parse the model with TensorRT or TensorRT-RTX and return its errors as findings.

    Nothing is built, and no GPU is needed.

    Returns:
        One finding an error; None where neither is installed.
    """
    from qgraph.errors import EngineError
    from qgraph.runtime.tensorrt import error_logger, load_tensorrt, network_flags

    try:
        trt, title = load_tensorrt()
    except EngineError:
        return None
    builder = trt.Builder(error_logger(trt))
    if builder is None:
        return None
    # The logger must outlive the parser.
    log = error_logger(trt)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, log)
    with tempfile.TemporaryDirectory(prefix="qgraph-lint-") as folder:
        path = Path(folder) / "model.onnx"
        onnx_io.save(view.graph, path)
        if parser.parse_from_file(str(path)):
            return []
        return list(_findings(parser, f"the parser of {title} {trt.__version__}"))


def _findings(parser: Any, source: str) -> Iterator[Finding]:
    seen = set()
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        key = error.node_name(), error.node_operator(), error.desc()
        if key in seen:
            continue
        seen.add(key)
        yield Finding(
            node=error.node_name(),
            op=error.node_operator(),
            engine="tensorrt",
            rule="parser",
            severity="refused",
            what="the parser refuses it",
            detail=one_line(error.desc())[:_LONGEST],
            source=source,
        )
