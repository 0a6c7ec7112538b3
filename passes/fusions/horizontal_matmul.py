"""Linear layers that read one value become one, with a Split behind it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qgraph.graph import Graph, Node, Value
from qgraph.passes.fusions._affine import along
from qgraph.passes.fusions._constants import constant, standing_in
from qgraph.pattern import Match, Pattern, activation, maybe, op, var
from qgraph.pipeline import Fusion, PassReport, Reject

if TYPE_CHECKING:
    from qgraph.context import Context

# Attributes that a Gemm may not have, other than so.
_PLAIN = (("transA", 0), ("alpha", 1.0), ("beta", 1.0))


@dataclass(frozen=True)
class HorizontalMatMul(Fusion):
    """Merge linear layers that read one value, as q, k and v do, into one with a Split behind it.

    Off by default (`max_rows = 0`), because on ONNX Runtime's CPU it does not pay; see Numerics.

    Before:
        q = MatMul(x, weight_q)
        k = MatMul(x, weight_k)
        v = MatMul(x, weight_v)

    After:
        y = MatMul(x, weight)
        q, k, v = Split <axis = -1> (y, sizes)

        where weight is the three weights side by side. Biases in an Add behind each MatMul, or
        in Gemm, merge too; a layer without one gets zeros.

    When:
        At least two MatMuls, or two Gemms, by constant matrices read one value that has at most
        `max_rows` rows (the product of all dimensions but the last).

    Leaves alone:
        More rows or an unknown number; MatMul beside Gemm; computed weights; Gemm with transA,
        alpha, beta or a bias of another shape; weights of different types; opset 12 and before.

    Numerics:
        Exact: each column is the same sum as before.

        Measured (`python -m benchmarks.horizontal_matmul`; ONNX Runtime 1.31.1, float32, two Zen 4
        cores that did other work too, two runs of 15 cases): one layer is .63 to 1.37 times as
        fast as three, median 1.01, and few cases agree between the runs: 3 x 384 -> 384 at 32
        rows 1.17 and 1.04, at 8 rows 1.01 and .76; 3 x 768 -> 768 at 8 rows 1.17 and 1.18;
        3 x 128 -> 128 at 128 rows .95 and .63.

    Source:
        https://onnx.ai/onnx/operators/onnx__Split.html; Jia et al. 2019, TASO, SOSP, which
        derives this substitution.

    Attributes:
        max_rows: Largest number of rows to merge for; 0 switches the fusion off.
    """

    name: ClassVar[str] = "horizontal_matmul"
    pattern: ClassVar[Pattern] = op.any_of("MatMul", "Gemm")(
        activation("x"), var("weight"), maybe("bias")
    )

    max_rows: int = 0

    def run(self, graph: Graph, context: "Context") -> PassReport:
        """Merge everywhere, unless the fusion is off."""
        return super().run(graph, context) if self.max_rows > 0 else PassReport()

    def applies(self, graph: Graph, m: Match) -> bool:
        """Only where at least two linear layers read the value."""
        return len(m.value("x").uses()) > 1 and len(_branches(graph, m)) > 1

    def rewrite(self, graph: Graph, m: Match) -> Value | Reject | None:
        """Insert the merged layer in front of the first one, and the Split behind it."""
        rows = _rows(graph, m.value("x"))
        if rows is None or rows > self.max_rows:
            found = "an unknown number of" if rows is None else rows
            return Reject(f"the input has {found} rows, merging pays up to {self.max_rows}")
        if graph.opset < 13:
            return Reject(f"Split has no sizes as an input in opset {graph.opset}")
        branches = _branches(graph, m)
        merged = _insert(graph, m, branches)
        sizes = np.asarray([branch.weight.shape[1] for branch in branches], np.int64)
        split = graph.insert(
            "Split",
            [merged.outputs[0], graph.constant(f"{merged.name}_sizes", sizes)],
            after=merged,
            attributes={"axis": -1},
            name=f"{merged.name}_split",
            outputs=len(branches),
        )
        for branch, part in zip(branches, split.outputs, strict=True):
            old = branch.last.outputs[0]
            graph.replace(old, standing_in(part, branch.last))
            graph.remove_unread([branch.node, branch.last])
        return None


@dataclass(frozen=True)
class _Branch:
    """One of the layers: `weight` [K, N], `bias` [N] or None, and the node that ends it."""

    node: Node
    last: Node
    weight: NDArray[Any]
    bias: NDArray[Any] | None


def _branches(graph: Graph, m: Match) -> list[_Branch]:
    """Return the layers that can be merged with the match's root, in graph order."""
    root = m.root
    users = dict.fromkeys(use.node for use in m.value("x").uses() if use.idx == 0)
    nodes = [n for n in users if n.graph is root.graph and graph.is_standard(n, root.op_type)]
    found = [branch for node in nodes if (branch := _branch(graph, node)) is not None]
    own = next((branch for branch in found if branch.node is root), None)
    if own is None:
        return []
    shape, dtype = own.weight.shape[0], own.weight.dtype
    return [b for b in found if b.weight.shape[0] == shape and b.weight.dtype == dtype]


def _branch(graph: Graph, node: Node) -> _Branch | None:
    if any(graph.attribute(node, name, default) != default for name, default in _PLAIN):
        return None
    weight = constant(graph, node.inputs[1])
    if weight is None or weight.ndim != 2:
        return None
    if graph.attribute(node, "transB", 0):
        weight = weight.T
    columns = weight.shape[1]
    if node.op_type == "Gemm":
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return _Branch(node, node, weight, None)
        bias = _vector(graph, node.inputs[2], columns, weight.dtype)
        return None if bias is None else _Branch(node, node, weight, bias)
    add = graph.only_reader(node.outputs[0])
    if add is not None and graph.is_standard(add, "Add") and add.graph is node.graph:
        other = add.inputs[0] if add.inputs[1] is node.outputs[0] else add.inputs[1]
        bias = _vector(graph, other, columns, weight.dtype)
        if bias is not None:
            return _Branch(node, add, weight, bias)
    return _Branch(node, node, weight, None)


def _vector(
    graph: Graph, value: Value | None, size: int, dtype: np.dtype[Any]
) -> NDArray[Any] | None:
    """Return a bias as [size] of `dtype`, or None where it is none of one value a column."""
    array = constant(graph, value)
    exact = None if array is None else along(array, -1, size, None)
    return None if exact is None else exact.astype(dtype)


def _insert(graph: Graph, m: Match, branches: list[_Branch]) -> Node:
    """Insert the merged layer before the match's root, the first in graph order; return its end."""
    root = m.root
    name = f"{root.name or 'matmul'}_merged"
    inputs: list[Value | None] = [
        m.value("x"),
        graph.constant(f"{name}_weight", np.concatenate([b.weight for b in branches], axis=1)),
    ]
    if all(branch.bias is None for branch in branches):
        return graph.insert(root.op_type, inputs, before=root, name=name)
    parts = [np.zeros_like(b.weight[0]) if b.bias is None else b.bias for b in branches]
    bias = graph.constant(f"{name}_bias", np.concatenate(parts))
    if root.op_type == "Gemm":
        return graph.insert("Gemm", [*inputs, bias], before=root, name=name)
    product = graph.insert("MatMul", inputs, before=root, name=name)
    return graph.insert("Add", [product.outputs[0], bias], after=product, name=f"{name}_add")


def _rows(graph: Graph, value: Value) -> int | None:
    """Number of vectors that the layers multiply; None if a dimension is unknown."""
    shape = graph.shape(value)
    if shape is None or not all(isinstance(d, int) for d in shape[:-1]):
        return None
    return math.prod(d for d in shape[:-1] if isinstance(d, int))
