"""Which nodes the target's rules let run in integers, whatever stands around them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from qgraph.graph import Graph, Node, Value
from qgraph.passes.placement.heads import REASON, detection_heads
from qgraph.passes.placement.layers import clip_bounds, product_sizes, weight_axis
from qgraph.target import OpRule, Target


@dataclass(frozen=True)
class Wishes:
    """What the user wants of the plan; see `qgraph.passes.plan.PlanQuantization`.

    Attributes:
        exclude: Globs of node names and operators that stay in float.
        keep_first: Leave the first layer in float.
        keep_last: Leave the last layer in float.
        attention: Quantize products of two activations.
        min_channels: Least channels of a dense convolution.
    """

    exclude: tuple[str, ...] = ()
    keep_first: bool = False
    keep_last: bool = False
    attention: bool = True
    min_channels: int = 0


@dataclass
class Placed:
    """What a placement decided, for `qgraph.passes.placement.write`.

    Attributes:
        chosen: Nodes that take or hand on codes, with their rules.
        reasons: Why the others stay in float.
        fused: Nodes that run in float inside the kernel of a chosen one, and in whose.
        skipped: (node, input index) of activations that a chosen node reads in float.
        writing: Chosen nodes whose results are quantized for all readers.
        why: Why a chosen node is, where its rule alone does not say it.
        floats: Why values stay in float, where their neighbours alone do not say it.
    """

    chosen: dict[Node, OpRule] = field(default_factory=dict)
    reasons: dict[Node, str] = field(default_factory=dict)
    fused: dict[Node, str] = field(default_factory=dict)
    skipped: set[tuple[Node, int]] = field(default_factory=set)
    writing: set[Node] = field(default_factory=set)
    why: dict[Node, str] = field(default_factory=dict)
    floats: dict[Value, str] = field(default_factory=dict)


class Rules:
    """A target's rules for one graph.

    Attributes:
        graph: The graph; it is not changed.
        target: Whose rules.
        heads: Nodes of detection heads.
    """

    def __init__(self, graph: Graph, target: Target, wishes: Wishes) -> None:
        """Find the layers that the wishes name."""
        self.graph, self.target, self.wishes = graph, target, wishes
        self.heads = detection_heads(graph)
        self._weights: dict[Node, str | None] = {}
        self._kept: dict[Node, str] = {}
        layers = [
            node
            for node in graph.nodes("Conv", "Gemm", "MatMul")
            if node not in self.heads and self._weight_refusal(node) is None
        ]
        if wishes.keep_first and layers:
            self._kept[layers[0]] = "first layer, kept by plan.keep_first"
        if wishes.keep_last and layers:
            self._kept[layers[-1]] = "last layer, kept by plan.keep_last"

    @property
    def _kind(self) -> str:
        return self.target.numbers.removesuffix("s")

    def rule(self, node: Node) -> OpRule | None:
        """The row for a node; with two activations to multiply, both have that role."""
        rule = self.target.rule(node.op_type) if self.graph.is_standard(node) else None
        if rule is not None and rule.products and not self.is_constant(node.inputs[1]):
            return OpRule(rule.op, ("activation",), rule.output, rule.starts, source=rule.source)
        return rule

    def activations(self, node: Node) -> list[tuple[int, Value]]:
        """Inputs whose role is activation, by index."""
        rule = self.rule(node)
        return [
            (index, value)
            for index, value in enumerate(node.inputs)
            if value is not None and rule is not None and rule.role(index) == "activation"
        ]

    def is_constant(self, value: Value | None) -> bool:
        """Whether `value` is known before any input is, sparse constants included."""
        return self.graph.is_constant(value) or (
            value is not None and value.name in self.graph.sparse
        )

    def result(self, node: Node) -> Value:
        """The value that carries the node's codes: behind an absorbed activation function."""
        out = node.outputs[0]
        reader = self.graph.only_reader(out)
        if (
            reader is not None
            and self.graph.is_standard(reader, *self.target.absorbs)
            and reader.graph is node.graph
            and reader.inputs[0] is out
            and clip_bounds(self.graph, reader) is not None
        ):
            return reader.outputs[0]
        return out

    def refusal(self, node: Node) -> str | None:
        """Say why `node` stays in float, or None if its neighbours decide."""
        target, graph = self.target, self.graph
        if not graph.is_standard(node):
            return f"custom operator of domain {node.domain!r}"
        if node in self.heads:
            return REASON
        rule = self.rule(node)
        if rule is None:
            return target.left_float.get(
                node.op_type, f"target {target.name} has no {self._kind} {node.op_type}"
            )
        for pattern in self.wishes.exclude:
            if fnmatchcase(node.name or "", pattern) or fnmatchcase(node.op_type, pattern):
                return f"excluded by {pattern!r}"
        if node in self._kept:
            return self._kept[node]
        data = [v for i, v in enumerate(node.inputs) if v and rule.role(i) != "other"]
        for value in [*data, node.outputs[0]]:
            if value.dtype is not None and value.dtype != ir.DataType.FLOAT:
                return f"works on {value.dtype.name.lower()}, not float32"
        if node.outputs[0].is_graph_output() and rule.output != "float":
            return "its result is a graph output, which stays in float"
        if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
            return "its second output is used"
        if "weight" in rule.roles:
            return self._weight_refusal(node)
        if any(self.is_constant(value) for value in data):
            return "one operand is a constant"
        if rule.starts:
            return self._product_refusal(node)
        return self._layout_refusal(node)

    # -- layers ----------------------------------------------------------------------------------

    def _weight_refusal(self, node: Node) -> str | None:
        """Say why the weights of `node` can't be quantized; looked at once, they may be large."""
        if node not in self._weights:
            self._weights[node] = self._find_weight_refusal(node)
        return self._weights[node]

    def _find_weight_refusal(self, node: Node) -> str | None:
        rule = self.target.rule(node.op_type)
        if self.result(node).is_graph_output() and (rule is None or rule.output != "float"):
            return "its result is a graph output, which stays in float"
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        tensor = self.graph.tensor(weight)
        if tensor is None:
            return "both operands are activations" if weight is not None else "has no weight"
        if tensor.dtype != ir.DataType.FLOAT:
            return f"its weight is {tensor.dtype.name.lower()}, not float32"
        if node.op_type == "MatMul" and len(tensor.shape) != 2:
            return "its weight does not have two axes"
        if self.is_constant(node.inputs[0]):
            return "its data operand is a constant"
        if not _is_finite(tensor):
            return "its weight is not finite"
        if node.op_type == "ConvTranspose" and self.graph.attribute(node, "group", 1) != 1:
            return "a grouped ConvTranspose has no axis of output channels"
        if rule is not None and rule.role(2) == "bias":
            reason = self._bias_refusal(node, tensor.shape.numpy()[weight_axis(node)])
            if reason is not None:
                return reason
        if node.op_type == "Gemm":
            plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
            if any(self.graph.attribute(node, k, v) != v for k, v in plain.items()):
                return "Gemm with alpha, beta or transA"
        if node.op_type in ("Gemm", "MatMul"):
            return None if rule is None else self._size_refusal(node, rule)
        return self._channels_refusal(node, rule, tensor.shape.numpy())

    def _bias_refusal(self, node: Node, channels: int) -> str | None:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None:
            return None
        found = self.graph.tensor(bias)
        if found is None:
            return "its bias is computed"
        if len(found.shape) != 1 or found.size != channels:
            return "its bias is not one value a channel"
        return None if _is_finite(found) else "its bias is not finite"

    def _channels_refusal(
        self, node: Node, rule: OpRule | None, shape: Sequence[int]
    ) -> str | None:
        """Say whether a convolution has too few channels; `shape` is its weight's."""
        if rule is not None and min(shape[:2]) < rule.least:
            return f"a group has fewer than {rule.least} channels on one side"
        dense = self.graph.attribute(node, "group", 1) == 1
        if dense and min(shape[:2]) < self.wishes.min_channels:
            return f"fewer than {self.wishes.min_channels} channels (plan.min_channels)"
        return None

    def _product_refusal(self, node: Node) -> str | None:
        """Say why a product of two activations stays in float."""
        if not self.wishes.attention:
            return "product of two activations, kept by plan.attention"
        rule = self.target.rule(node.op_type)
        return None if rule is None else self._size_refusal(node, rule)

    def _size_refusal(self, node: Node, rule: OpRule) -> str | None:
        rows, depth, width = product_sizes(self.graph, node)
        if any(size is not None and size < rule.least for size in (depth, width)):
            return (
                f"depth {depth}, width {width}: below {rule.least} "
                f"{self.target.numbers} are no faster"
            )
        if not rule.vectors and (rows == 1 or width == 1):
            return "a product with a vector waits for memory, not for arithmetic"
        return None

    # -- operators that codes pass through -------------------------------------------------------

    def _layout_refusal(self, node: Node) -> str | None:
        if node.op_type == "Resize" and self.graph.attribute(node, "mode", "nearest") != "nearest":
            return "it computes new values between the old ones"
        if node.op_type == "Pad" and self.graph.attribute(node, "mode", "constant") == "constant":
            value = node.inputs[2] if len(node.inputs) > 2 else None
            if value is not None and self.graph.scalar(value) != 0:
                return "it pads with another value than 0"
        return None


def _is_finite(tensor: ir.TensorProtocol) -> bool:
    array = tensor.numpy()
    # Both are NaN if any element is; that needs no array of truth values beside the weight.
    return bool(np.isfinite(array.min(initial=0.0)) and np.isfinite(array.max(initial=0.0)))
