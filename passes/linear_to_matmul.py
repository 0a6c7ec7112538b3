"""Every linear layer with a constant weight becomes MatMul(x, W [K, N]), plus Add for a bias."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qgraph.context import Context
from qgraph.graph import Graph, Node, Value
from qgraph.lazy import derived
from qgraph.passes.fusions._constants import constant, scaled, standing_in
from qgraph.pipeline import Pass, PassReport, Reject

_VIEWS = ("Identity", "Cast", "Transpose", "Reshape")
_LINEAR = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True)
class LinearToMatMul(Pass):
    """Write linear layers as a MatMul by a constant [K, N], the form that weight-only passes read.

    Before:
        y = Gemm <transB = 1> (x, w, b)             # w [N, K]
        z = Conv(image, v, c)                       # v [M, C, 1, 1]

    After:
        y = Add(MatMul(x, w_matrix), b)             # w_matrix [K, N]
        z = Transpose(Add(MatMul(Transpose(image), v_matrix), c))       # channels last in between

    When:
        Gemm with a constant weight: alpha goes into the weight, beta into a constant bias. MatMul
        whose second operand is a Transpose, Reshape, Cast or Identity of a constant: that is
        computed. Conv with a kernel of one element, one group and stride 1. Weights that several
        layers share stay one constant. Inside subgraphs too.

    Leaves alone:
        Gemm with transA, or with beta other than 1 and a computed bias; MatMul whose first operand
        is the constant (y = W x); strided or grouped 1x1 convolutions. Where a Gather or anything
        else that is no linear layer reads the weight too, a Transpose stays between the two, so
        that nothing is stored twice. Batched weights [E, K, N] are MatMuls already.

    Numerics:
        Exact up to the order of summation, and one rounding of the weight where alpha is not 1.

    Source:
        https://onnx.ai/onnx/operators/onnx__Gemm.html, onnx__MatMul.html, onnx__Conv.html.

    Attributes:
        convolutions: Rewrite 1x1 convolutions too. Two Transposes of the data are added; those
            between neighbouring layers cancel in `merge_transposes`.
        only: Names of the layers to rewrite; none for all.
    """

    convolutions: bool = True
    only: tuple[str, ...] = ()

    name: ClassVar[str] = "linear_to_matmul"
    breaks: ClassVar[frozenset[str]] = frozenset({"units"})

    def run(self, graph: Graph, context: Context) -> PassReport:
        """Rewrite in one sweep."""
        graph.name_nodes()
        report = PassReport()
        rewriter = _Rewriter(graph)
        rewrites: dict[str, Callable[[Node], Value | Reject | None]] = {
            "Gemm": rewriter.gemm,
            "MatMul": rewriter.matmul,
        }
        if self.convolutions:
            rewrites["Conv"] = rewriter.conv
        for node in list(graph.walk()):
            if not graph.is_standard(node, *rewrites):
                continue
            if self.only and node.name not in self.only:
                continue
            where = node.name or node.op_type
            outcome = rewrites[node.op_type](node)
            if outcome is None:
                continue
            if isinstance(outcome, Reject):
                report.refuse(where, outcome.reason)
                continue
            if outcome is not node.outputs[0]:
                graph.replace(node.outputs[0], standing_in(outcome, node))
                graph.remove(node)
            report.did(where)
        if report.changed:
            graph.remove_unread(rewriter.views)
            graph.drop_unread_initializers()
        return report


@dataclass
class _Rewriter:
    """Rewrites one layer at a time.

    Attributes:
        graph: The graph.
        views: Nodes on the way from a constant to a layer that no longer reads them.
        known: Matrices made so far, by the value they stand for, transposition and factor.
    """

    graph: Graph
    views: list[Node] = field(default_factory=list)
    known: dict[tuple[Value, bool, float], Value] = field(default_factory=dict)

    def gemm(self, node: Node) -> Value | Reject | None:
        graph = self.graph
        x, source = node.inputs[:2]
        weight = constant(graph, source)
        if source is None or weight is None or weight.ndim != 2:
            return None
        if graph.attribute(node, "transA", 0):
            return Reject("transA: its data would have to be transposed")
        alpha, beta = (float(graph.attribute(node, name, 1.0)) for name in ("alpha", "beta"))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        vector = None
        if bias is not None and beta != 1:
            vector = constant(graph, bias)
            vector = None if vector is None else scaled(vector, np.full((1,) * vector.ndim, beta))
            if vector is None:
                return Reject(f"beta = {beta:g} can't be folded into its bias")
        matrix = self._matrix(node, source, weight, bool(graph.attribute(node, "transB", 0)), alpha)
        if isinstance(matrix, Reject):
            return matrix
        if bias is not None and vector is not None:
            bias = graph.constant(f"{bias.name}_scaled", vector)
        return self._layer(node, x, matrix, bias, like=node.outputs[0])

    def matmul(self, node: Node) -> Value | Reject | None:
        graph, (x, source) = self.graph, node.inputs
        if graph.is_constant(x) and not graph.is_constant(source):
            return Reject("its constant comes first (y = W x)")
        if source is None or graph.is_constant(source) or self._needed_elsewhere(source):
            return None
        weight = constant(graph, source)
        if weight is None or weight.ndim < 2:
            return None
        self._passed_by(source)
        # A Gemm with transB may have the same matrix.
        turn = source.producer()
        assert turn is not None
        base, turned = source, turn.op_type == "Transpose" and weight.ndim == 2
        if turned and graph.is_constant(turn.inputs[0]) and turn.inputs[0] is not None:
            base = turn.inputs[0]
        key = base, base is not source, 1.0
        if key not in self.known:
            self.known[key] = self._store(base, weight)
        graph.set_input(node, 1, self.known[key])
        return node.outputs[0]

    def conv(self, node: Node) -> Value | Reject | None:
        graph = self.graph
        x, source = node.inputs[:2]
        weight = constant(graph, source)
        if x is None or source is None or weight is None or weight.ndim < 3:
            return None
        if weight[0, 0].size != 1:
            return None
        if graph.attribute(node, "group", 1) != 1:
            return Reject("a 1x1 convolution in groups")
        if any(step != 1 for step in graph.attribute(node, "strides", ())):
            return Reject("a 1x1 convolution with strides")
        if any(graph.attribute(node, "pads", ())):
            return Reject("a 1x1 convolution with padding")
        rank = weight.ndim
        matrix = self._matrix(node, source, weight.reshape(weight.shape[:2]), True, 1.0)
        if isinstance(matrix, Reject):
            return matrix
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        name, ends = node.name or node.op_type, (rank - 1, *range(1, rank - 1))
        last = self._transpose(node, x, (0, *range(2, rank), 1), f"{name}_channels_last")
        product = self._layer(node, last, matrix, bias)
        out = self._transpose(node, product, (0, *ends), f"{name}_channels_first")
        out.type, out.shape = node.outputs[0].type, node.outputs[0].shape
        return out

    def _layer(
        self,
        node: Node,
        x: Value | None,
        matrix: Value,
        bias: Value | None,
        like: Value | None = None,
    ) -> Value:
        """Add MatMul and Add, the first under the name of the layer; return the result."""
        name = node.name or node.op_type
        made = self.graph.insert("MatMul", [x, matrix], before=node, name=name, like=like)
        out = made.outputs[0]
        if bias is not None:
            out = self.graph.insert(
                "Add", [out, bias], before=node, name=f"{name}_bias", like=like
            ).outputs[0]
        # The layer's name goes on; the old node is about to go.
        node.name, made.name = made.name, name
        return out

    def _transpose(self, node: Node, value: Value, perm: Sequence[int], name: str) -> Value:
        made = self.graph.insert(
            "Transpose", [value], before=node, attributes={"perm": list(perm)}, name=name
        )
        return made.outputs[0]

    def _matrix(
        self, node: Node, source: Value, weight: NDArray[Any], turned: bool, factor: float
    ) -> Value | Reject:
        """Return the value that holds `weight` as [K, N], times `factor`."""
        key = source, turned, factor
        if key in self.known:
            return self.known[key]
        plain = factor == 1 and weight.ndim == len(self.graph.shape(source) or ())
        if plain and not turned and self.graph.is_constant(source):
            return source
        if plain and self._needed_elsewhere(source):
            return (
                self._transpose(node, source, (1, 0), f"{node.name}_weight") if turned else source
            )
        if factor != 1:
            product = scaled(weight, np.full((1, 1), factor))
            if product is None:
                return Reject(f"alpha = {factor:g} takes its weight out of the type's range")
            weight = product
        self._passed_by(source)
        matrix = weight.T if turned else weight
        self.known[key] = self._store(source, matrix)
        return self.known[key]

    def _store(self, source: Value, matrix: NDArray[Any]) -> Value:
        return derived(
            self.graph,
            f"{source.name or 'weight'}_matrix",
            matrix,
            np.ascontiguousarray,
            dtype=matrix.dtype,
            shape=matrix.shape,
        )

    def _needed_elsewhere(self, value: Value) -> bool:
        """Whether something that is no linear layer reads the constant behind `value`."""
        base = value
        while (node := base.producer()) is not None and self.graph.is_standard(node, *_VIEWS):
            first = node.inputs[0]
            assert first is not None
            base = first
        others = {node.op_type for node in self.graph.readers(base)} - _LINEAR - set(_VIEWS)
        return bool(others) or base.is_graph_output()

    def _passed_by(self, value: Value) -> None:
        """Note the views that lead to `value`, first ones first."""
        found: list[Node] = []
        while (node := value.producer()) is not None and self.graph.is_standard(node, *_VIEWS):
            found.append(node)
            first = node.inputs[0]
            assert first is not None
            value = first
        self.views.extend(reversed(found))
