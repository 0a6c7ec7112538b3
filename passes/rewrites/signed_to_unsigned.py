"""Int8 activations become uint8 by a shift of all codes."""

from dataclasses import dataclass, replace
from typing import ClassVar

from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.passes.rewrites._qdq import Constants, label, put, region
from qgraph.pipeline import Pass, PassReport

_SHIFT = 128


@dataclass(frozen=True)
class SignedToUnsigned(Pass):
    """Turn int8 activations into uint8 ones: every code and zero point grows by 128.

    Before:
        q = QuantizeLinear(x, scale, zero_point)        # int8
        y = DequantizeLinear(q, scale, zero_point)

    After:
        q = QuantizeLinear(x, scale, zero_point + 128)  # uint8
        y = DequantizeLinear(q, scale, zero_point + 128)

    When:
        A QuantizeLinear to int8 whose codes only DequantizeLinear nodes with the same zero point
        read. Weights, which stand in the model as codes, stay as they are.

    Leaves alone:
        Codes that are a graph output or that other operators read; computed parameters.

    Numerics:
        Exact: the same floats come out, bit for bit.

    Source:
        The definition of both operators. onnxruntime's CPU kernels are made for uint8 activations
        (its QDQS8ToU8Transformer does the same for some), and OpenVINO refuses signed ones with a
        zero point.
    """

    name: ClassVar[str] = "signed_to_unsigned"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Shift the codes of every int8 activation."""
        report = PassReport()
        constants = Constants(graph)
        for node in list(graph.walk()):
            if not graph.is_standard(node, "QuantizeLinear"):
                continue
            if graph.is_constant(node.inputs[0]):
                continue  # a weight
            found = region(graph, node)
            if isinstance(found, str):
                report.refuse(label(node), found)
                continue
            if found.parameters.dtype != "int8":
                continue
            hint = node.outputs[0].name or "codes"
            for each, old in ((node, found.parameters), *found.readers):
                shifted = replace(old, dtype="uint8", zero_point=old.zero_point + _SHIFT)
                put(constants, each, shifted, hint)
            report.did(f"{label(node)}: int8 to uint8, exact")
        if report.changed:
            graph.drop_unread_initializers()
        return report
