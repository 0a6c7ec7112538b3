"""Decoders of the Llama family as plain ONNX graphs, with or without inputs for the KV cache.

Without: `input_ids` int64 [batch, seq] in, `logits` float32 [batch, seq, vocabulary] out. With it,
for every layer N also `past_key_values.N.key` and `.value` float32 [batch, kv_heads, past,
head_size] in and `present.N.key` and `.value` [batch, kv_heads, total, head_size] out, where total
= past + seq; the first run is fed caches of length 0.

Opset 23 is the first with RMSNormalization: one node, and one kernel of onnxruntime's, where exports
to opset 17 have six. Attention stays in its parts, as exports have it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from models.zoo.llama import Config, Weights, rope_tables, shapes

OPSET = 23
IR_VERSION = 11
CONTEXT_KEY = "context_length"
MASKED = -1e9  # added to a score, leaves nothing of it after the softmax


def build(config: Config, weights: Weights, *, kv: bool = False) -> ir.Model:
    """Return the decoder as an ONNX model.

    Args:
        config: Its sizes.
        weights: Float32 arrays by name; not copied.
        kv: Whether it has inputs and outputs for the cache.

    Raises:
        ValueError: A weight is missing or has another shape than `shapes` says.
    """
    for name, shape in shapes(config).items():
        found = weights[name].shape if name in weights else "missing"
        if found != shape:
            raise ValueError(f"weight {name!r} must have shape {shape}, it is {found}")
    network = _Network(config, weights, kv)
    network.write()
    graph = ir.Graph(
        network.inputs,
        network.outputs,
        nodes=network.nodes,
        initializers=list(network.constants.values()),
        opset_imports={"": OPSET},
        name="llama",
    )
    metadata = {CONTEXT_KEY: str(config.context)}
    return ir.Model(
        graph, ir_version=IR_VERSION, producer_name="qgraph-zoo", metadata_props=metadata
    )


@dataclass(frozen=True)
class _Positions:
    """What depends on the new tokens' positions, the same in all layers.

    Attributes:
        cos: [seq, head_size / 2].
        sin: The same.
        mask: Added to the scores, [seq, total].
    """

    cos: ir.Value
    sin: ir.Value
    mask: ir.Value


@dataclass
class _Network:
    """The graph as it grows; nodes and the values that they make have the same names."""

    config: Config
    weights: Weights
    kv: bool
    nodes: list[ir.Node] = field(default_factory=list)
    constants: dict[str, ir.Value] = field(default_factory=dict)
    inputs: list[ir.Value] = field(default_factory=list)
    outputs: list[ir.Value] = field(default_factory=list)

    # -- parts of any graph ------------------------------------------------------------------

    def node(
        self, op: str, inputs: Sequence[ir.Value], name: str, outputs: int = 1, **attributes: Any
    ) -> ir.Value:
        """Add a node and return its first output, called `name`; others end in their number."""
        attrs = ir.convenience.convert_attributes(attributes)
        node = ir.Node("", op, inputs, attrs, num_outputs=outputs, name=name)
        for index, output in enumerate(node.outputs):
            output.name = f"{name}.{index}" if index else name
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """Return the initializer `name`, made of `array` unless it is there already."""
        if name not in self.constants:
            self.constants[name] = ir.val(name, const_value=ir.Tensor(array, name=name))
        return self.constants[name]

    def ints(self, *values: int) -> ir.Value:
        """Return an int64 vector, for shapes, axes and bounds."""
        name = ".".join(map(str, ("ints", *values)))
        return self.constant(name, np.array(values, np.int64))

    def number(self, name: str, value: Any) -> ir.Value:
        """Return a constant without axes."""
        return self.constant(name, np.array(value))

    def enter(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """Add a graph input."""
        self.inputs.append(ir.val(name, dtype, shape))
        return self.inputs[-1]

    def leave(self, value: ir.Value, shape: Sequence[int | str]) -> None:
        """Make a value, float32, a graph output."""
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(shape)
        self.outputs.append(value)

    # -- parts of a decoder ------------------------------------------------------------------

    def write(self) -> None:
        """Write the whole decoder."""
        c = self.config
        ids = self.enter("input_ids", ir.DataType.INT64, ["batch", "seq"])
        shape = ["batch", c.kv_heads, "past", c.head_size]
        caches = [
            self.enter(f"past_key_values.{n}.{part}", ir.DataType.FLOAT, shape)
            for n in range(c.layers if self.kv else 0)
            for part in ("key", "value")
        ]
        positions = self.positions(ids, caches[0] if caches else None)
        table = self.constant("embed.weight", self.weights["embed"])
        x = self.node("Gather", [table, ids], "embed")
        present: list[ir.Value] = []
        for n in range(c.layers):
            y = self.normalized(x, f"layers.{n}.norm1")
            y = self.attention(y, n, positions, caches[2 * n : 2 * n + 2], present)
            x = self.node("Add", [x, y], f"layers.{n}.attn.add")
            y = self.feed_forward(self.normalized(x, f"layers.{n}.norm2"), f"layers.{n}.mlp")
            x = self.node("Add", [x, y], f"layers.{n}.mlp.add")
        logits = self.linear(self.normalized(x, "norm"), "head", "logits")
        self.leave(logits, ["batch", "seq", c.vocabulary])
        for value in present:
            self.leave(value, ["batch", c.kv_heads, "total", c.head_size])

    def positions(self, ids: ir.Value, past: ir.Value | None) -> _Positions:
        """Cut the rotary tables to the new positions and mask what lies behind each of them."""
        zero, one = (self.number(f"number.{n}", np.int64(n)) for n in (0, 1))
        seq = self.node("Shape", [ids], "seq", start=1, end=2)
        start, end = self.ints(0), seq
        if past is not None:
            start = self.node("Shape", [past], "past", start=2, end=3)
            end = self.node("Add", [start, seq], "total")
        axes = self.ints(0)  # TensorRT does not do without
        cos, sin = (
            self.node("Slice", [self.constant(f"rope.{n}.table", t), start, end, axes], f"rope.{n}")
            for n, t in rope_tables(self.config).items()
        )
        first, last = (
            self.node("Squeeze", [bound], f"mask.{name}")
            for name, bound in (("first", start), ("last", end))
        )
        rows = self.node("Range", [first, last, one], "mask.rows")
        rows = self.node("Unsqueeze", [rows, self.ints(1)], "mask.rows.column")
        columns = self.node("Range", [zero, last, one], "mask.columns")
        later = self.node("Greater", [columns, rows], "mask.later")
        low = self.number("mask.low", np.float32(MASKED))
        high = self.number("mask.high", np.float32(0))
        return _Positions(cos, sin, self.node("Where", [later, low, high], "mask"))

    def linear(self, x: ir.Value, weight: str, name: str = "") -> ir.Value:
        """Multiply by a weight; the family has no biases."""
        matrix = self.constant(f"{weight}.weight", self.weights[weight])
        return self.node("MatMul", [x, matrix], name or weight)

    def normalized(self, x: ir.Value, name: str) -> ir.Value:
        """Divide each vector by the root of its mean square and scale it."""
        scale = self.constant(f"{name}.weight", self.weights[name])
        epsilon = self.config.epsilon
        return self.node("RMSNormalization", [x, scale], name, axis=-1, epsilon=epsilon)

    def heads(self, x: ir.Value, name: str) -> ir.Value:
        """Split [batch, seq, heads * size] into [batch, heads, seq, size]."""
        x = self.node("Reshape", [x, self.ints(0, 0, -1, self.config.head_size)], f"{name}.split")
        return self.node("Transpose", [x], f"{name}.heads", perm=[0, 2, 1, 3])

    def turned(self, x: ir.Value, at: _Positions, name: str) -> ir.Value:
        """Turn each pair of a head's first and second half by its position's angle."""
        a = self.node("Split", [x], f"{name}.halves", outputs=2, axis=-1, num_outputs=2)
        b = self.nodes[-1].outputs[1]
        products = {
            f"{half}.{table}": self.node("Mul", [v, t], f"{name}.rope.{half}.{table}")
            for half, v in (("a", a), ("b", b))
            for table, t in (("cos", at.cos), ("sin", at.sin))
        }
        halves = [
            self.node("Sub", [products["a.cos"], products["b.sin"]], f"{name}.rope.first"),
            self.node("Add", [products["b.cos"], products["a.sin"]], f"{name}.rope.second"),
        ]
        return self.node("Concat", halves, f"{name}.rope", axis=-1)

    def shared(self, x: ir.Value, name: str) -> ir.Value:
        """Repeat each key or value head for the query heads that share it."""
        c = self.config
        if c.group == 1:
            return x
        x = self.node("Unsqueeze", [x, self.ints(2)], f"{name}.group")
        x = self.node("Expand", [x, self.ints(1, 1, c.group, 1, 1)], f"{name}.expand")
        return self.node("Reshape", [x, self.ints(0, c.heads, -1, c.head_size)], f"{name}.shared")

    def attention(
        self,
        x: ir.Value,
        layer: int,
        at: _Positions,
        caches: Sequence[ir.Value],
        present: list[ir.Value],
    ) -> ir.Value:
        """Write one layer's attention; with caches, add the grown ones to `present`."""
        name = f"layers.{layer}.attn"
        q, k, v = (self.heads(self.linear(x, f"{name}.{part}"), f"{name}.{part}") for part in "qkv")
        q, k = self.turned(q, at, f"{name}.q"), self.turned(k, at, f"{name}.k")
        if caches:
            k = self.node("Concat", [caches[0], k], f"present.{layer}.key", axis=2)
            v = self.node("Concat", [caches[1], v], f"present.{layer}.value", axis=2)
            present += [k, v]
        k, v = self.shared(k, f"{name}.k"), self.shared(v, f"{name}.v")
        k = self.node("Transpose", [k], f"{name}.k.transposed", perm=[0, 1, 3, 2])
        scores = self.node("MatMul", [q, k], f"{name}.scores")
        root = self.number("attn.root", np.float32(np.sqrt(self.config.head_size)))
        scores = self.node("Div", [scores, root], f"{name}.scaled")
        scores = self.node("Add", [scores, at.mask], f"{name}.masked")
        weights = self.node("Softmax", [scores], f"{name}.softmax", axis=-1)
        y = self.node("MatMul", [weights, v], f"{name}.context")
        y = self.node("Transpose", [y], f"{name}.joined", perm=[0, 2, 1, 3])
        y = self.node("Reshape", [y, self.ints(0, 0, -1)], f"{name}.merged")
        return self.linear(y, f"{name}.o")

    def feed_forward(self, x: ir.Value, name: str) -> ir.Value:
        """Write down(silu(gate(x)) * up(x)); Shazeer, GLU Variants Improve Transformer, 2020."""
        gate = self.linear(x, f"{name}.gate")
        sigmoid = self.node("Sigmoid", [gate], f"{name}.sigmoid")
        silu = self.node("Mul", [gate, sigmoid], f"{name}.silu")
        gated = self.node("Mul", [silu, self.linear(x, f"{name}.up")], f"{name}.gated")
        return self.linear(gated, f"{name}.down")
