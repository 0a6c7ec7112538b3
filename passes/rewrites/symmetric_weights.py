"""Asymmetric weights become symmetric: zero point 0."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph.context import Context
from qgraph.graph import Graph, Node, Value
from qgraph.passes.rewrites._qdq import Constants, is_symmetric, label, moves, parameters, put
from qgraph.passes.rewrites._recode import Recoded, recode
from qgraph.pipeline import Pass, PassReport


@dataclass(frozen=True)
class SymmetricWeights(Pass):
    """Give constant codes with zero points new codes without: int8, or int4 for 4 bits.

    Before:
        w = DequantizeLinear(codes, scale, zero_point)      # uint8, or int8 with a zero point

    After:
        w = DequantizeLinear(codes', scale', 0)             # int8

        where codes' = codes - zero_point and scale' = scale, if all of a channel's fit int8;
        otherwise scale' grows until they do.

    When:
        Codes, scale and zero point are constants; one scale a tensor, channel or block.

    Leaves alone:
        Computed codes and parameters; 16-bit codes; 4-bit codes that don't fit 4 bits less their
        zero point, where growing the scale would lose much of what 4 bits hold.

    Numerics:
        Rounding. Exact for every channel or block whose codes fit; the others move by at most
        half the new step. The report gives every bound.

    Source:
        https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html. TensorRT takes zero point 0 only.
    """

    name: ClassVar[str] = "symmetric_weights"
    numerics = "rounding"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite every such constant."""
        report = PassReport()
        weights = _Weights(Constants(graph), report)
        for node in list(graph.walk()):
            if graph.is_standard(node, "DequantizeLinear"):
                weights.rewrite(node)
        if report.changed:
            graph.drop_unread_initializers()
        return report


class _Weights:
    """Rewrites DequantizeLinear nodes of constant codes, each constant once."""

    def __init__(self, constants: Constants, report: PassReport) -> None:
        self.constants, self.graph, self.report = constants, constants.graph, report
        self._done: dict[tuple[Value | None, ...], tuple[Value, Recoded]] = {}

    def rewrite(self, node: Node) -> None:
        source = node.inputs[0]
        if source is None:
            return
        old = parameters(self.graph, node)
        producer = source.producer()
        if producer is not None and self.graph.is_standard(producer, "QuantizeLinear"):
            return  # an activation: done, or refused with its reason
        if isinstance(old, str) or is_symmetric(old) or old.dtype == "int32":
            return
        tensor = self.graph.tensor(source)
        if tensor is None:
            where = "a graph input" if producer is None else f"made by {producer.op_type}"
            self.report.refuse(label(node), f"its codes are {where}")
            return
        key = (*node.inputs, *(None,) * (3 - len(node.inputs)))
        if key not in self._done:
            new = recode(tensor.numpy(), old)
            if isinstance(new, str):
                self.report.refuse(label(node), new)
                return
            self._done[key] = self.graph.constant(f"{source.name}_symmetric", new.codes), new
        codes, new = self._done[key]
        put(self.constants, node, new.parameters, source.name or "weight", codes)
        self.report.did(
            f"{label(node)}: {old.dtype} weight to symmetric {new.parameters.dtype}; "
            f"{moves(new.bound)}"
        )
