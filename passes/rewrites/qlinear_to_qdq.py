"""QLinear operators become float operators between DequantizeLinear and QuantizeLinear."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.graph import ONNX_DOMAINS, Graph, Node, Value
from qgraph.passes.rewrites._lowering import Lowering, RefusedError
from qgraph.passes.rewrites._qdq import label
from qgraph.passes.rewrites._qlinear_products import convolution, gemm, product
from qgraph.pipeline import Pass, PassReport

_SOFTMAX_ONE_AXIS_SINCE = 13


@dataclass(frozen=True)
class QLinearToQDQ(Pass):
    """Write operators on codes as float operators between DequantizeLinear and QuantizeLinear.

    Before:
        c = com.microsoft.QLinearAdd(a, a_scale, a_zero, b, b_scale, b_zero, c_scale, c_zero)

    After:
        f = Add(DequantizeLinear(a, a_scale, a_zero), DequantizeLinear(b, b_scale, b_zero))
        c = QuantizeLinear(f, c_scale, c_zero)

    When:
        QLinearConv and QLinearMatMul of ONNX; QLinearConv, QGemm, QLinearAdd, QLinearMul,
        QLinearAveragePool, QLinearConcat, QLinearGlobalAveragePool, QLinearLeakyRelu,
        QLinearSigmoid, QLinearSoftmax and QLinearWhere of com.microsoft.

    Leaves alone:
        Channels that come last; activations with a scale a row or channel; scales that are
        computed where a bias needs them; sizes that contradict each other.

    Numerics:
        Rounding: the same sums in float32 instead of int32, so a result that lies next to the
        middle between two codes may come out one code away.

    Source:
        https://onnx.ai/onnx/operators/onnx__QLinearConv.html, onnx__QLinearMatMul.html and
        https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
    """

    name: ClassVar[str] = "qlinear_to_qdq"
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
                result = form(lowering)
            except RefusedError as refused:
                lowering.undo()
                report.refuse(where, str(refused))
                continue
            graph.replace(node.outputs[0], result)
            graph.remove(node)
            report.did(f"{where}: within one code")
        if report.changed:
            graph.drop_unread_initializers()
        return report


Form = Callable[[Lowering], Value]


def elementwise(op_type: str, operands: tuple[int, ...], result: int) -> Form:
    """Return the form of an operator whose operands are (codes, scale, zero point) triples.

    Args:
        op_type: Float operator.
        operands: Index of each triple's codes.
        result: Index of the result's scale, whose zero point follows.
    """

    def build(node: Lowering) -> Value:
        node.plain_layout()
        dtype = node.code_type(operands[0], operands[0] + 2)
        for index in operands:
            node.one_scale(index + 1, "operand")
        node.one_scale(result, "result")
        inputs = [
            node.dequantize(node.needed(i), node.needed(i + 1), node.input(i + 2)) for i in operands
        ]
        floats = node.compute(op_type, inputs)
        return node.quantize(floats, node.needed(result), node.input(result + 1), dtype)

    return build


def where(node: Lowering) -> Value:
    """condition, X and its two, Y and its two, z's two."""
    dtype = node.code_type(1, 3)
    inputs = [
        node.dequantize(node.needed(i), node.needed(i + 1), node.input(i + 2)) for i in (1, 4)
    ]
    floats = node.compute("Where", [node.needed(0), *inputs])
    return node.quantize(floats, node.needed(7), node.input(8), dtype)


def concat(node: Lowering) -> Value:
    """Y's two, then triples."""
    count = len(node.node.inputs) - 2
    if count < 3 or count % 3:
        raise RefusedError("its inputs are not triples of codes, scale and zero point")
    node.attributes("axis")
    triples = range(2, 2 + count, 3)
    dtype = node.code_type(2, 4)
    inputs = [
        node.dequantize(node.needed(i), node.needed(i + 1), node.input(i + 2)) for i in triples
    ]
    return node.quantize(node.compute("Concat", inputs), node.needed(0), node.input(1), dtype)


def average_pool(node: Lowering) -> Value:
    """X and its two, y's two."""
    node.attributes("kernel_shape")
    return elementwise("AveragePool", (0,), 3)(node)


def softmax(node: Lowering) -> Value:
    """Before opset 13 a Softmax ran over all axes behind its own; `opset` tells which is meant."""
    graph = node.graph
    rank = graph.rank(node.needed(0))
    meant = int(graph.attribute(node.node, "opset", 13))
    axis = int(graph.attribute(node.node, "axis", -1))
    last = axis == -1 or (rank is not None and axis % rank == rank - 1)
    old, now = (version < _SOFTMAX_ONE_AXIS_SINCE for version in (meant, graph.opset))
    if not last and old != now:
        raise RefusedError(f"its axes are those of opset {meant}, the model has {graph.opset}")
    if rank is None and axis != -1:
        raise RefusedError("its rank is unknown")
    return elementwise("Softmax", (0,), 3)(node)


MICROSOFT_FORMS: dict[str, Form] = {
    "QGemm": gemm,
    "QLinearAdd": elementwise("Add", (0, 3), 6),
    "QLinearAveragePool": average_pool,
    "QLinearConcat": concat,
    "QLinearConv": convolution,
    "QLinearGlobalAveragePool": elementwise("GlobalAveragePool", (0,), 3),
    "QLinearLeakyRelu": elementwise("LeakyRelu", (0,), 3),
    "QLinearMul": elementwise("Mul", (0, 3), 6),
    "QLinearSigmoid": elementwise("Sigmoid", (0,), 3),
    "QLinearSoftmax": softmax,
    "QLinearWhere": where,
}
ONNX_FORMS: dict[str, Form] = {"QLinearConv": convolution, "QLinearMatMul": product}


def _form(node: Node) -> Form | None:
    if node.domain in ONNX_DOMAINS:
        return ONNX_FORMS.get(node.op_type)
    return MICROSOFT_FORMS.get(node.op_type) if node.domain == "com.microsoft" else None
