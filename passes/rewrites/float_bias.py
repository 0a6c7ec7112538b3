"""An int32 DequantizeLinear of a constant becomes a float constant."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qgraph.context import Context
from qgraph.encoding import dequantize
from qgraph.graph import Graph, Node, Value
from qgraph.passes.rewrites._qdq import label, parameters
from qgraph.pipeline import Pass, PassReport


@dataclass(frozen=True)
class FloatBias(Pass):
    """Fold the DequantizeLinear of a constant int32 bias into a float constant.

    Before:
        b = DequantizeLinear(codes, scale)      # codes: int32 constant
        y = Conv(x, w, b)

    After:
        y = Conv(x, w, b)                       # b: float constant

    When:
        Codes, scale and zero point are constants, and the codes are int32.

    Leaves alone:
        Computed codes, as those of an integer convolution; codes of other types.

    Numerics:
        Exact: the constant holds what DequantizeLinear computes, rounded as it rounds.

    Source:
        https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html. TensorRT takes int8, int4 and
        float8 codes only, and adds biases in float.
    """

    name: ClassVar[str] = "float_bias"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Fold every such node."""
        report = PassReport()
        for node in list(graph.walk()):
            if not graph.is_standard(node, "DequantizeLinear"):
                continue
            if _is_int32(graph, node):
                self._fold(graph, node, report)
        if report.changed:
            graph.drop_unread_initializers()
        return report

    def _fold(self, graph: Graph, node: Node, report: PassReport) -> None:
        codes = graph.array(node.inputs[0])
        if codes is None:
            report.refuse(label(node), "its codes are computed")
            return
        found = parameters(graph, node)
        if isinstance(found, str):
            report.refuse(label(node), found)
            return
        out = node.outputs[0]
        dtype = found.scale.dtype if out.dtype is None else np.dtype(out.dtype.numpy())
        try:
            with np.errstate(over="ignore"):
                values = dequantize(codes, found.encoding(codes.ndim)).astype(dtype)
        except ValueError as error:
            report.refuse(label(node), str(error))
            return
        if not np.isfinite(values.astype(np.float64)).all():
            report.refuse(label(node), f"its values are too large for {dtype}")
            return
        where = label(node)
        graph.replace(out, graph.constant(f"{out.name}_float", values))
        graph.remove(node)
        report.did(f"{where}: {values.size} int32 codes became {dtype}, exact")


def _is_int32(graph: Graph, node: Node) -> bool:
    value: Value | None = node.inputs[0]
    tensor = graph.tensor(value)
    dtype = tensor.dtype if tensor is not None else value.dtype if value is not None else None
    return dtype is not None and dtype.name == "INT32"
