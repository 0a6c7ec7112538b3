"""Products of float8 codes by onnxruntime's kernel for them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qgraph.context import Context
from qgraph.graph import Graph, Node, Value
from qgraph.pipeline import Pass, PassReport

# What may stand between a product and the codes of its operands.
_VIEWS = ("Cast", "Transpose", "DequantizeLinear")
_RESULTS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT)
_CODES = ir.DataType.FLOAT8E4M3FN


@dataclass(frozen=True)
class GemmFloat8(Pass):
    """Multiply float8 codes by com.microsoft.GemmFloat8, as written by `fp8` and then `half`.

    Before:
        codes = Cast <to = FLOAT8E4M3FN> (x)                # x [B, S, K] float16
        w = Transpose(DequantizeLinear(w_codes, scale))     # w_codes float8e4m3fn [N, K]
        y = MatMul(Cast <to = FLOAT16> (codes), w)

    After:
        codes = Cast <to = FLOAT8E4M3FN> (Reshape(x, [-1, K]))
        rows = com.microsoft.GemmFloat8 <transB = 1, dtype = FLOAT16> (
            codes, w_codes, , one, scale)
        y = Reshape(rows, [B, S, N])

    When:
        A MatMul whose operands are codes in float8e4m3fn, the second a constant [N, K] with one
        scale, transposed.

    Leaves alone:
        Everything else; with `enabled` false, all of it: the model then runs on any engine.

    Numerics:
        Exact up to the order of summation on the reference. On the GPU the kernel adds up in fewer
        digits than float32 has (cuBLAS's fast accumulation, which it does not let one turn off).

    Source:
        onnxruntime's contrib_ops/cuda/math/gemm_float8.cu: two axes, transA = 0 and transB = 1
        alone for float8, scales in the GPU's memory. Its C is a whole matrix and no bias, so that
        biases stay in an Add.

    Attributes:
        enabled: Whether to do it.
    """

    enabled: bool = True

    name: ClassVar[str] = "gemm_float8"
    numerics = "rounding"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite every product."""
        report = PassReport()
        if not self.enabled:
            return report
        writer = _Writer(graph)
        for node in list(graph.nodes("MatMul")):
            if writer.product(node):
                report.did(node.name or node.op_type)
        graph.remove_unread(list(graph.nodes("Cast", "Transpose", "DequantizeLinear")))
        graph.drop_unread_initializers()
        if report.changed:
            report.notes.append(
                "where no engine of the target runs, the model is verified as it was before this"
            )
        return report


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._one: Value | None = None
        self._scales: dict[Value, Value] = {}
        # By codes, the same as rows; by codes and width, the shape of a product.
        self._rows: dict[Value, Value] = {}
        self._shapes: dict[tuple[Value, int], Value] = {}

    def product(self, node: Node) -> bool:
        """Put the kernel in the place of a MatMul, if its operands are codes."""
        graph, result = self.graph, node.outputs[0]
        codes, weight = self._codes(node.inputs[0]), self._weight(node.inputs[1])
        dtype = result.dtype
        if codes is None or weight is None or dtype not in _RESULTS:
            return False
        w_codes, scale = weight
        inputs = [self._as_rows(codes), w_codes, None, self._unit(), self._scale(scale)]
        gemm = graph.insert(
            "GemmFloat8",
            inputs,
            before=node,
            attributes={"transB": 1, "dtype": int(dtype)},
            domain="com.microsoft",
            name=f"{node.name}_GemmFloat8",
        )
        made = gemm.outputs[0]
        made.type = ir.TensorType(dtype)
        width = int(w_codes.shape[0])  # type: ignore[index, arg-type]
        if graph.rank(codes) == 2:
            made.shape = None if result.shape is None else result.shape.copy()
        else:
            shape = self._shape(codes, width, node)
            reshape = graph.insert("Reshape", [made, shape], before=node, like=result)
            made = reshape.outputs[0]
        if not result.is_graph_output():
            made.name, result.name = result.name, made.name
        graph.replace(result, made)
        name = node.name
        graph.remove(node)
        gemm.name = name
        return True

    def _codes(self, value: Value | None) -> Value | None:
        """The codes behind a float operand: a Cast of a Cast to float8."""
        while value is not None and value.dtype != _CODES:
            node = value.producer()
            if node is None or not self.graph.is_standard(node, "Cast"):
                return None
            value = node.inputs[0]
        node = None if value is None else value.producer()
        made_here = node is not None and self.graph.is_standard(node, "Cast")
        return value if made_here and (self.graph.rank(value) or 0) >= 2 else None

    def _weight(self, value: Value | None) -> tuple[Value, Value] | None:
        """The codes and the scale of a constant operand."""
        scale, transposed = None, False
        while value is not None and value.dtype != _CODES:
            node = value.producer()
            if node is None or not self.graph.is_standard(node, *_VIEWS):
                return None
            transposed ^= node.op_type == "Transpose"
            if node.op_type == "DequantizeLinear":
                scale = node.inputs[1]
                if len(node.inputs) > 2 or self.graph.scalar(scale) is None:
                    return None
            value = node.inputs[0]
        known = value is not None and self.graph.is_constant(value)
        return (value, scale) if value and scale and transposed and known else None

    def _unit(self) -> Value:
        if self._one is None:
            self._one = self.graph.constant("float8_one", np.ones(1, np.float32))
        return self._one

    def _scale(self, value: Value) -> Value:
        """Return a scale as the kernel wants it: float32 [1]."""
        if value not in self._scales:
            array = np.array([self.graph.scalar(value)], np.float32)
            self._scales[value] = self.graph.constant(f"{value.name}_b", array)
        return self._scales[value]

    def _as_rows(self, codes: Value) -> Value:
        """Give codes two axes: their source is reshaped before it is cast, which every type can."""
        graph = self.graph
        if graph.rank(codes) == 2:
            return codes
        if codes not in self._rows:
            cast = codes.producer()
            assert cast is not None
            source, depth = cast.inputs[0], (graph.shape(codes) or ())[-1]
            assert source is not None
            wanted = graph.constant(f"{codes.name}_rows", np.array([-1, depth], np.int64))
            flat = graph.insert("Reshape", [source, wanted], before=cast)
            flat.outputs[0].type = source.type
            made = graph.insert(
                "Cast",
                [flat.outputs[0]],
                before=cast,
                attributes={"to": int(_CODES)},
                name=cast.name,
            )
            made.outputs[0].type = ir.TensorType(_CODES)
            self._rows[codes] = made.outputs[0]
        return self._rows[codes]

    def _shape(self, codes: Value, width: int, node: Node) -> Value:
        """Return the shape of a product: that of the codes up to its last axis, then its width."""
        graph = self.graph
        if (codes, width) not in self._shapes:
            lengths = (graph.shape(codes) or ())[:-1]
            known = [length if isinstance(length, int) else -1 for length in lengths]
            if known.count(-1) < 2:
                array = np.array([*known, width], np.int64)
                self._shapes[codes, width] = graph.constant(f"{node.name}_shape", array)
            else:
                self._shapes[codes, width] = self._computed_shape(codes, width)
        return self._shapes[codes, width]

    def _computed_shape(self, codes: Value, width: int) -> Value:
        graph, cast = self.graph, codes.producer()
        assert cast is not None
        last = graph.constant(f"{codes.name}_width", np.array([width], np.int64))
        # Of the source: shapes of float8 are not something every engine reads.
        shape = graph.insert("Shape", [cast.inputs[0]], before=cast, attributes={"end": -1})
        inputs = [shape.outputs[0], last]
        joined = graph.insert("Concat", inputs, before=cast, attributes={"axis": 0})
        for value in (shape.outputs[0], joined.outputs[0]):
            value.type = ir.TensorType(ir.DataType.INT64)
        return joined.outputs[0]
