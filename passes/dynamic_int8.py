"""Int8 weights with activations quantized at run time: int8 without calibration data."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.encoding import Spec
from qgraph.facts import Plan
from qgraph.graph import Graph, Node, Value
from qgraph.passes.dynamic_embedding import Table, store_table, table_refusal
from qgraph.passes.weights import weight_quantizer
from qgraph.pipeline import Pass, PassReport

WEIGHT = Spec("int8", symmetric=True, axis=1, narrow=True)

# Shorter sides fill no integer kernel: [32, 16] x [16, 1024] took 25 us against 17 us in float.
MIN_SIDE = 32

# onnxruntime 1.31 on Zen 4, two threads, the layers of MobileNetV2 at 224 x 224: ConvInteger and
# the nodes around it took 2.0 (pointwise, 7 x 7) to 45 (depthwise, 56 x 56) times the time of
# the float Conv, and 5 times on 3 x 3 convolutions of ResNet-50.
NO_CONV = (
    "onnxruntime's ConvInteger is slower than its float Conv: 2 to 8 times on the pointwise "
    "layers of MobileNetV2, 17 to 45 times on the depthwise ones"
)

LEFT_FLOAT = {
    "Conv": NO_CONV,
    "ConvTranspose": "ONNX has no integer ConvTranspose",
    "LSTM": "ONNX has no integer LSTM",
    "GRU": "ONNX has no integer GRU",
    "RNN": "ONNX has no integer RNN",
}


@dataclass(frozen=True)
class DynamicInt8(Pass):
    """Run MatMul and Gemm with constant weights in int8, activations quantized at run time.

    Each becomes DynamicQuantizeLinear (uint8, one scale per tensor), MatMulInteger, Cast, Mul by
    both scales, and Add of the bias: the form that onnxruntime fuses into DynamicQuantizeMatMul,
    or into MatMulIntegerToFloat where several nodes share one DynamicQuantizeLinear. Weights are
    symmetric int8 per output channel; a weight that several nodes read is quantized once.

    Attributes:
        method: Weight quantizer; see `qgraph.passes.weights`.
        min_elements: Smaller weights stay in float, where they are as fast and more accurate.
        embeddings: Store large tables that Gather reads in int8 too, one scale a row.
        min_embedding: Smallest table, in elements, that `embeddings` touches.

    Source: https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html and
        https://onnx.ai/onnx/operators/onnx__MatMulInteger.html.
    """

    method: str = "rtn"
    min_elements: int = 16384
    embeddings: bool = False
    min_embedding: int = 65536

    name: ClassVar[str] = "dynamic_int8"
    gives: ClassVar[frozenset[str]] = frozenset({"plan", "quantized"})
    breaks: ClassVar[frozenset[str]] = frozenset({"units", "attention"})
    numerics = "rounding"

    def __post_init__(self) -> None:
        """Refuse an unknown method before anything runs."""
        weight_quantizer(self.method)

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite the graph; `facts.plan.nodes` tells each node's precision and reason."""
        graph.name_nodes()
        writer = _Writer(graph, context, self)
        for node in list(graph.walk()):
            if graph.is_standard(node, "MatMul", "Gemm"):
                writer.linear(node)
            elif self.embeddings and _gathers_constant(graph, node):
                writer.embedding(node)
            elif graph.is_standard(node, *LEFT_FLOAT):
                writer.leave(node, LEFT_FLOAT[node.op_type])
            else:
                writer.plan.nodes[node.name or ""] = ("float", f"{node.op_type} stays in float")
        graph.remove_unread(graph.nodes("Constant"))
        graph.drop_unread_initializers()
        graph.facts.plan = writer.plan
        graph.facts.quantized = True
        return writer.report


@dataclass(frozen=True, eq=False)
class _Codes:
    """A weight's constants: codes [K, N] int8, scale [N] float32, and its relative error."""

    codes: Value
    scale: Value
    loss: float


class _Writer:
    def __init__(self, graph: Graph, context: Context, options: DynamicInt8) -> None:
        self.graph, self.context, self.options = graph, context, options
        self.solve = weight_quantizer(options.method)
        self.plan = Plan()
        self.report = PassReport()
        self._inputs: dict[Value, Node] = {}
        self._weights: dict[tuple[Value, bool], _Codes] = {}
        self._tables: dict[Value, Table] = {}

    def leave(self, node: Node, reason: str) -> None:
        self.plan.nodes[node.name or ""] = ("float", reason)
        self.report.refuse(node.name or "", reason)

    # -- MatMul and Gemm -------------------------------------------------------------------------

    def linear(self, node: Node) -> None:
        reason = self._refusal(node)
        if reason is not None:
            self.leave(node, reason)
            return
        data, weight = node.inputs[0], node.inputs[1]
        assert data is not None and weight is not None
        transposed = bool(self.graph.attribute(node, "transB", 0))
        codes = self._quantized(weight, transposed)
        result = self._compute(node, self._input(data, node), codes)
        self.graph.replace(node.outputs[0], result)
        self.graph.remove(node)
        self.plan.nodes[node.name or ""] = ("int8", "weights int8, activations uint8 at run time")
        self.report.did(f"{node.name}: int8, relative error of the weights {codes.loss:.3g}")

    def _refusal(self, node: Node) -> str | None:
        if node.graph is not self.graph.main:
            return "inside the body of another node"
        reason = self._excluded(node)
        if reason is not None:
            return reason
        tensor = self.graph.tensor(node.inputs[1])
        if tensor is None:
            first = self.graph.is_constant(node.inputs[0])
            return "its constant is the first operand" if first else "both operands are activations"
        if tensor.dtype != ir.DataType.FLOAT:
            return f"its weight is {tensor.dtype.name.lower()}, not float32"
        if self.graph.is_constant(node.inputs[0]):
            return "both operands are constants"
        if len(tensor.shape) != 2:
            return f"its weight has {len(tensor.shape)} axes, not 2"
        if min(tensor.shape.numpy()) < MIN_SIDE or tensor.size < self.options.min_elements:
            return f"its weight {list(tensor.shape.numpy())} is too small to be faster in int8"
        if node.op_type == "Gemm":
            plain = {"alpha": 1.0, "transA": 0} | ({"beta": 1.0} if _bias(node) else {})
            for name, value in plain.items():
                found = self.graph.attribute(node, name, value)
                if found != value:
                    return f"Gemm with {name} = {found:g}"
        if not np.isfinite(tensor.numpy()).all():
            return "its weight is not finite"
        return None

    def _excluded(self, node: Node) -> str | None:
        for pattern in self.context.exclude:
            if fnmatchcase(node.name or "", pattern) or fnmatchcase(node.op_type, pattern):
                return f"excluded by {pattern!r}"
        return None

    def _quantized(self, weight: Value, transposed: bool) -> _Codes:
        key = weight, transposed
        if key not in self._weights:
            array = self.graph.array(weight)
            assert array is not None
            matrix: NDArray[np.floating] = array.T if transposed else array
            codes, encoding, loss = self.solve(matrix, WEIGHT, None)
            name = weight.name or "weight"
            self._weights[key] = _Codes(
                self.graph.constant(f"{name}_codes", np.ascontiguousarray(codes)),
                self.graph.constant(f"{name}_scale", encoding.scale.reshape(-1)),
                loss,
            )
        return self._weights[key]

    def _input(self, data: Value, node: Node) -> Node:
        """Quantize `data` once for all its readers; outputs are codes, scale and zero point."""
        if data not in self._inputs:
            # The first reader in graph order asks first, so the others come behind it.
            quantize = self.graph.insert(
                "DynamicQuantizeLinear", [data], before=node, outputs=3, name=f"{data.name}_q"
            )
            codes, scale, zero = quantize.outputs
            codes.type = zero.type = ir.TensorType(ir.DataType.UINT8)
            scale.type = ir.TensorType(ir.DataType.FLOAT)
            codes.shape = None if data.shape is None else data.shape.copy()
            scale.shape, zero.shape = ir.Shape(()), ir.Shape(())
            self._inputs[data] = quantize
        return self._inputs[data]

    def _compute(self, node: Node, quantize: Node, weight: _Codes) -> Value:
        graph, out = self.graph, node.outputs[0]
        codes, scale, zero = quantize.outputs

        def add(op_type: str, *inputs: Value, kind: ir.DataType = ir.DataType.FLOAT) -> Value:
            # Each is named after the node, so that profiles and reports lead back to it.
            made = graph.insert(op_type, inputs, before=node, name=f"{node.name}_{op_type}")
            if op_type == "Cast":
                graph.set_attribute(made, "to", int(kind))
            made.outputs[0].type = ir.TensorType(kind)
            return made.outputs[0]

        sums = add("MatMulInteger", codes, weight.codes, zero, kind=ir.DataType.INT32)
        floats = add("Cast", sums)
        step = add("Mul", scale, weight.scale)
        step.shape = weight.scale.shape
        result = add("Mul", floats, step)
        for each in (sums, floats, result):
            each.shape = None if out.shape is None else out.shape.copy()
        bias = _bias(node)
        return result if bias is None else add("Add", result, bias)

    # -- embeddings ------------------------------------------------------------------------------

    def embedding(self, node: Node) -> None:
        reason = self._excluded(node) or table_refusal(self.graph, node, self.options.min_embedding)
        if reason is not None:
            self.leave(node, reason)
            return
        loss = store_table(self.graph, node, self.solve, self._tables)
        self.plan.nodes[node.name or ""] = ("int8", "table stored in int8, one scale a row")
        self.report.did(f"{node.name}: int8 table, relative error {loss:.3g}")


def _gathers_constant(graph: Graph, node: Node) -> bool:
    return graph.is_standard(node, "Gather") and graph.is_constant(node.inputs[0])


def _bias(node: Node) -> Value | None:
    return node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
