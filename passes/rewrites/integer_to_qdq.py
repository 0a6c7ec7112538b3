"""ConvInteger, MatMulInteger and their kin become float operators behind DequantizeLinear."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.graph import ONNX_DOMAINS, Graph, Node
from qgraph.passes.rewrites._lowering import Lowering, RefusedError
from qgraph.passes.rewrites._qdq import label
from qgraph.pipeline import Pass, PassReport


@dataclass(frozen=True)
class IntegerToQDQ(Pass):
    """Write integer products as float products of dequantized operands.

    Before:
        sums = MatMulInteger(a, b, a_zero, b_zero)      # int32
        y = Cast <to = FLOAT>(sums)

    After:
        y = MatMul(DequantizeLinear(a, 1, a_zero), DequantizeLinear(b, 1, b_zero))

    When:
        MatMulInteger and ConvInteger whose sums only Casts to float32 read; and
        com.microsoft.MatMulIntegerToFloat, whose scales become those of the DequantizeLinear.

    Leaves alone:
        Sums that something else reads as integers; a zero point a row of the first operand;
        zero points a column that are computed.

    Numerics:
        Rounding: sums below 2^24 are exact in float32, larger ones are rounded to 24 bits.

    Source:
        https://onnx.ai/onnx/operators/onnx__MatMulInteger.html, onnx__ConvInteger.html and
        https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
    """

    name: ClassVar[str] = "integer_to_qdq"
    numerics = "rounding"

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite every such node, in graph order."""
        report = PassReport()
        found = [(node, form) for node in graph.walk() if (form := _form(node)) is not None]
        if found:
            onnx_io.infer_shapes(graph)
        for node, form in found:
            where = f"{label(node)} ({node.op_type})"
            lowering = Lowering(graph, node)
            try:
                form(lowering)
            except RefusedError as refused:
                lowering.undo()
                report.refuse(where, str(refused))
                continue
            report.did(f"{where}: sums in float32")
        if report.changed:
            graph.drop_unread_initializers()
        return report


def _matmul(node: Lowering) -> None:
    casts = _casts(node)
    _one_zero_point(node, 2)
    zero = node.graph.array(node.input(3))
    axis = None
    if node.input(3) is not None and (zero is None or zero.size != 1):
        rank = node.graph.rank(node.needed(1))
        if zero is None or zero.ndim != 1 or rank is None:
            raise RefusedError("its second operand has a zero point a row, or computed ones")
        axis = rank - 1
    _product(node, "MatMul", axis, casts)


def _conv(node: Lowering) -> None:
    casts = _casts(node)
    _one_zero_point(node, 2)
    zero = node.graph.array(node.input(3))
    if node.input(3) is not None and zero is None:
        raise RefusedError("its weight's zero point is computed")
    _product(node, "Conv", None if zero is None or zero.size == 1 else 0, casts)


def _product(node: Lowering, op_type: str, axis: int | None, casts: list[Node]) -> None:
    graph = node.graph
    one = graph.constant("one", np.array(1, np.float32))
    steps = one
    if axis is not None:
        zero = graph.array(node.input(3))
        assert zero is not None
        steps = graph.constant("ones", np.ones(zero.size, np.float32))
    inputs = [
        node.dequantize(node.needed(0), one, node.input(2)),
        node.dequantize(node.needed(1), steps, node.input(3), axis),
    ]
    result = node.compute(op_type, inputs)
    for cast in casts:
        graph.replace(cast.outputs[0], result)
        graph.remove(cast)
    graph.remove(node.node)


def _matmul_to_float(node: Lowering) -> None:
    """A, B, their scales, their zero points, bias."""
    node.one_scale(2, "first operand")
    scale = node.graph.array(node.needed(3))
    if scale is None:
        node.one_scale(3, "second operand")
    several = scale is not None and scale.size != 1
    rank = node.graph.rank(node.needed(1))
    if several and rank is None:
        raise RefusedError("its second operand has no known rank")
    _one_zero_point(node, 4)
    zero = node.graph.array(node.input(5))
    if node.input(5) is not None:
        if zero is None:
            raise RefusedError("its weight's zero point is computed")
        if several is not (zero.size != 1):
            raise RefusedError("its weight's scales and zero points differ in number")
    tensor = node.graph.tensor(node.needed(3))
    dtype = tensor.dtype if tensor is not None else node.needed(3).dtype
    inputs = [
        node.dequantize(node.needed(0), node.needed(2), node.input(4)),
        node.dequantize(
            node.needed(1), node.needed(3), node.input(5), (rank or 1) - 1 if several else None
        ),
    ]
    result = node.compute("MatMul", inputs, {}, dtype or ir.DataType.FLOAT)
    bias = node.input(6)
    if bias is not None:
        result = node.compute("Add", [result, bias], {}, dtype or ir.DataType.FLOAT)
    node.graph.replace(node.node.outputs[0], result)
    node.graph.remove(node.node)


def _casts(node: Lowering) -> list[Node]:
    """Return the Casts to float32 that read the sums.

    Raises:
        RefusedError: Something else does.
    """
    graph, sums = node.graph, node.node.outputs[0]
    readers = list(dict.fromkeys(graph.readers(sums)))
    for reader in readers:
        to_float = graph.attribute(reader, "to") == int(ir.DataType.FLOAT)
        if not (graph.is_standard(reader, "Cast") and to_float and reader.graph is node.node.graph):
            raise RefusedError(f"its int32 sums are read by {reader.op_type}")
    if sums.is_graph_output() or not readers:
        raise RefusedError("its int32 sums are a graph output")
    return readers


def _one_zero_point(node: Lowering, index: int) -> None:
    if node.input(index) is not None:
        value = node.needed(index)
        tensor = node.graph.tensor(value)
        shape = tensor.shape.numpy() if tensor is not None else node.graph.shape(value)
        if shape is None or any(length != 1 for length in shape):
            raise RefusedError("its first operand has a zero point a row")


FORMS: dict[str, Callable[[Lowering], None]] = {"MatMulInteger": _matmul, "ConvInteger": _conv}


def _form(node: Node) -> Callable[[Lowering], None] | None:
    if node.domain in ONNX_DOMAINS:
        return FORMS.get(node.op_type)
    is_kin = node.domain == "com.microsoft" and node.op_type == "MatMulIntegerToFloat"
    return _matmul_to_float if is_kin else None
