"""Compares two engines layer by layer: every result of the model becomes an output of both."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from qgraph import onnx_io
from qgraph.errors import unknown_name
from qgraph.graph import Graph, Value
from qgraph.runtime.backend import Session
from qgraph.runtime.compare import Comparison, OutputComparison
from qgraph.runtime.reference import open_reference
from qgraph.runtime.tensors import Array

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")


def compare_layers(
    model: Path,
    feeds: Iterable[Mapping[str, Array]],
    open_candidate: Callable[[Path], Session],
    names: Sequence[str] = (),
    *,
    open_base: Callable[[Path], Session] = open_reference,
) -> list[OutputComparison]:
    """Run a model in two engines and compare its intermediate results.

    A result that is handed out is not fused away: the engine under test is not quite the one that
    runs without it. Compare few layers by name where that matters.

    Args:
        model: ONNX file; external data lies beside it.
        feeds: Samples by input name.
        open_candidate: Opens a model in the engine that is judged.
        names: Values to compare; empty for the float results of all nodes but Q/DQ.
        open_base: Opens a model in the engine that is right.

    Returns:
        One comparison a value, in the order in which they are computed, the model's own outputs
        last.

    Raises:
        UsageError: There is no value of that name.
        EngineError: An engine refuses the model, or fails.
    """
    graph = onnx_io.load(model)
    onnx_io.infer_shapes(graph)
    chosen = _values(graph, names)
    order = [value.name or "" for value in (*chosen, *graph.outputs)]
    graph.main.outputs.extend(chosen)
    comparison = Comparison()
    with tempfile.TemporaryDirectory(prefix="qgraph-layers-") as folder:
        path = Path(folder) / "model.onnx"
        onnx_io.save(graph, path)
        with open_base(path) as base, open_candidate(path) as candidate:
            for sample in feeds:
                comparison.add(base.run(sample), candidate.run(sample))
    return sorted(comparison.results(), key=lambda each: order.index(each.name))


def _values(graph: Graph, names: Sequence[str]) -> list[Value]:
    results = {
        out.name or "": out
        for node in graph.nodes()
        for out in node.outputs
        if out.name and not out.is_graph_output()
    }
    if not names:
        return [value for value in results.values() if _is_result(graph, value)]
    for name in names:
        if name not in results:
            raise unknown_name("intermediate value", name, results)
    return [value for name, value in results.items() if name in names]


def _is_result(graph: Graph, value: Value) -> bool:
    node = value.producer()
    if node is None or value.dtype is None or value.dtype.name not in _FLOATS:
        return False
    return node.op_type != "Constant" and not graph.is_standard(node, *_QUANTIZERS)
