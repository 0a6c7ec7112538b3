"""A linear layer followed by BatchNormalization becomes one Gemm."""

from dataclasses import dataclass
from typing import ClassVar

from qgraph.graph import Graph, Value
from qgraph.passes.fusions._affine import Affine, batchnorm, bias_of, fold_into_linear
from qgraph.passes.fusions._constants import constant, standing_in
from qgraph.pattern import Match, Pattern, const, maybe, one_of, op, var
from qgraph.pipeline import Fusion, Reject

_LINEAR = op.any_of("MatMul", "Gemm")(var("x"), var("weight"), maybe("bias"), bind="linear")


@dataclass(frozen=True)
class LinearBatchNorm(Fusion):
    """Fold BatchNormalization into the weight and bias of the linear layer before it.

    Before:
        y = Gemm(x, weight, bias)
        z = BatchNormalization <epsilon> (y, scale, shift, mean, variance)

    After:
        z = Gemm(x, weight_folded, bias_folded)

        where factor = scale / sqrt(variance + epsilon), one value a column,
        weight_folded = weight * factor and bias_folded = (bias - mean) * factor + shift.

    When:
        Gemm, MatMul or MatMul + Add with a constant matrix and bias, where x has two axes;
        transA and transB are understood. MatMul becomes Gemm.

    Leaves alone:
        A MatMul of more axes or an unknown number: BatchNormalization's channels are axis 1
        there, not the columns. alpha or beta other than 1 (`gemm_factors` folds those). Training
        mode; computed weights, biases or statistics; a second reader; a variance plus epsilon
        that is not positive; folded weights that overflow or underflow their type.

    Numerics:
        Exact up to rounding: computed in float64, rounded once to the weight's type.

    Source:
        https://onnx.ai/onnx/operators/onnx__BatchNormalization.html; as for convolutions,
        Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """

    name: ClassVar[str] = "linear_batchnorm"
    pattern: ClassVar[Pattern] = op.BatchNormalization(
        one_of(_LINEAR, op.Add(const("addend"), _LINEAR)),
        var("scale"),
        var("shift"),
        var("mean"),
        var("variance"),
    )

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Fold the statistics into the Gemm, which replaces a MatMul."""
        linear = m.node("linear")
        weight = constant(graph, m.value("weight"))
        if weight is None or weight.ndim != 2:
            return Reject("the weight is not a constant matrix")
        if linear.op_type == "MatMul" and graph.rank(m.value("x")) != 2:
            return Reject("the MatMul's input is not known to have 2 axes")
        if any(graph.attribute(linear, name, 1.0) != 1.0 for name in ("alpha", "beta")):
            return Reject("the Gemm has an alpha or beta other than 1")
        columns = weight.shape[0 if graph.attribute(linear, "transB", 0) else 1]
        affine = batchnorm(graph, m.root, columns)
        if isinstance(affine, Reject):
            return affine
        addend = bias_of(graph, m.values.get("addend"), columns)
        if isinstance(addend, Reject):
            return addend
        total = Affine(affine.factor, affine.shift + addend * affine.factor)
        fold = fold_into_linear(graph, linear, weight, total)
        if isinstance(fold, Reject):
            return fold
        if linear.op_type == "MatMul":
            inputs = [m.value("x"), m.value("weight")]
            linear = graph.insert("Gemm", inputs, before=linear, name=linear.name)
        fold.put(graph, linear)
        return standing_in(linear.outputs[0], m.root)
