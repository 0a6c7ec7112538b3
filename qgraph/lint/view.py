"""A read-only view of a graph with the questions that rules ask."""

from collections.abc import Iterator

import onnx_ir as ir

from qgraph.graph import ONNX_DOMAINS, Graph, Node, Value
from qgraph.passes.rewrites._qdq import Parameters, code_type, parameters
from qgraph.target import Target

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


class View:
    """A graph under inspection.

    Attributes:
        graph: The graph, with shapes inferred.
        target: The target it is inspected for.
        functions: Names of the model's own functions.
    """

    def __init__(self, graph: Graph, target: Target) -> None:
        """Look at nothing yet."""
        self.graph, self.target = graph, target
        self.functions = {(key[0], key[1]) for key in graph.model.functions}
        self._parameters: dict[Node, Parameters | str] = {}

    def nodes(self) -> Iterator[Node]:
        """Yield every node, those of bodies and of the model's own functions included."""
        yield from self.graph.walk()
        for function in self.graph.model.functions.values():
            yield from function

    def parameters(self, node: Node) -> Parameters | str:
        """Return the constant parameters of a Q or DQ node, or why they can't be known."""
        if node not in self._parameters:
            self._parameters[node] = parameters(self.graph, node)
        return self._parameters[node]

    def code_type(self, node: Node) -> str:
        """Return the type of a Q or DQ node's codes by name."""
        return code_type(self.graph, node)

    def is_quantizer(self, node: Node | None, *op_types: str) -> bool:
        """Whether a node is a QuantizeLinear or DequantizeLinear, of onnxruntime's domain too."""
        return (
            node is not None
            and node.op_type in (op_types or QUANTIZERS)
            and (node.domain in ONNX_DOMAINS or node.domain == "com.microsoft")
        )

    @staticmethod
    def input(node: Node, index: int) -> Value | None:
        """Return an input; None where it is omitted, as malformed nodes omit even the first."""
        return node.inputs[index] if index < len(node.inputs) else None

    def dequantizer(self, node: Node, index: int) -> Node | None:
        """Return the DequantizeLinear behind an input, or None."""
        value = self.input(node, index)
        producer = None if value is None else value.producer()
        return producer if self.is_quantizer(producer, "DequantizeLinear") else None

    def is_weight(self, dequantizer: Node) -> bool:
        """Whether a DequantizeLinear reads constant codes."""
        return self.graph.is_constant(self.input(dequantizer, 0))

    def reads_codes(self, node: Node) -> bool:
        """Whether an activation comes to a node through a DequantizeLinear."""
        found = (self.dequantizer(node, index) for index in range(len(node.inputs)))
        return any(each is not None and not self.is_weight(each) for each in found)

    def quantizers_behind(self, value: Value) -> list[Node]:
        """Return the QuantizeLinear nodes that read a value."""
        return [n for n in self.graph.readers(value) if self.is_quantizer(n, "QuantizeLinear")]

    def dtype(self, value: Value | None) -> ir.DataType | None:
        """Return the element type of a value, None where nothing tells it."""
        tensor = self.graph.tensor(value)
        if tensor is not None:
            return tensor.dtype
        return None if value is None else value.dtype


def op_name(node: Node) -> str:
    """Return a node's operator, with its domain where that is not ONNX's."""
    return node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}.{node.op_type}"
