"""Puts a float operator between DequantizeLinear and QuantizeLinear in place of an integer one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qgraph.encoding import INTEGERS
from qgraph.graph import Graph, Node, Value
from qgraph.passes.rewrites._qdq import label

# onnxruntime's copies of ONNX operators take layouts that the originals don't.
FOREIGN_ATTRIBUTES = ("channels_last", "opset")


class RefusedError(Exception):
    """Raised where an integer node has no float form; its text is the reason."""


class Lowering:
    """Builds the float form of one integer node, in front of it.

    Args:
        graph: The graph.
        node: The integer node.
    """

    def __init__(self, graph: Graph, node: Node) -> None:
        """Start with nothing added."""
        self.graph, self.node = graph, node
        self._made: list[Node] = []

    def undo(self) -> None:
        """Take away what was added, after a refusal."""
        self.graph.remove_unread(self._made)
        self.graph.drop_unread_initializers()

    def input(self, index: int) -> Value | None:
        """Return an input, None where it is omitted."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def needed(self, index: int) -> Value:
        """Return an input that must be there.

        Raises:
            RefusedError: It is omitted.
        """
        value = self.input(index)
        if value is None:
            raise RefusedError(f"input {index} is missing")
        return value

    def array(self, index: int, what: str) -> Any:
        """Return the array of a constant input.

        Raises:
            RefusedError: It is computed.
        """
        array = self.graph.array(self.needed(index))
        if array is None:
            raise RefusedError(f"its {what} is computed")
        return array

    def one_scale(self, index: int, what: str) -> None:
        """Check that a scale is one for the whole tensor.

        Raises:
            RefusedError: It has several elements, or an unknown number of them.
        """
        value = self.needed(index)
        tensor = self.graph.tensor(value)
        shape = tensor.shape.numpy() if tensor is not None else self.graph.shape(value)
        if shape is None or any(length != 1 for length in shape):
            raise RefusedError(f"its {what} has a scale a row or channel")

    def code_type(self, codes: int, zero: int) -> ir.DataType:
        """Return the integer type of an operand.

        Raises:
            RefusedError: Nothing tells it, or it is no integer type that has codes.
        """
        for value in (self.input(zero), self.input(codes)):
            tensor = self.graph.tensor(value)
            dtype = tensor.dtype if tensor is not None else value.dtype if value else None
            if dtype is not None:
                if dtype.name.lower() not in INTEGERS:
                    raise RefusedError(f"its codes are {dtype.name.lower()}")
                return dtype
        raise RefusedError("the type of its codes is unknown")

    def dequantize(
        self, codes: Value, scale: Value, zero: Value | None, axis: int | None = None
    ) -> Value:
        """Add a DequantizeLinear and return its result."""
        if axis is None:
            scale, zero = self._scalar(scale), self._scalar(zero) if zero is not None else None
        made = self._insert(
            "DequantizeLinear",
            [codes, scale] if zero is None else [codes, scale, zero],
            attributes={} if axis is None else {"axis": axis},
            name=f"{label(self.node)}_{codes.name}_dq",
        )
        result = made.outputs[0]
        tensor = self.graph.tensor(scale)
        dtype = tensor.dtype if tensor is not None else scale.dtype
        result.type = ir.TensorType(dtype or ir.DataType.FLOAT)
        result.shape = None if codes.shape is None else codes.shape.copy()
        return result

    def compute(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Any] | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> Value:
        """Add the float operator, with the integer one's attributes unless others are given."""
        if attributes is None:
            attributes = {
                name: attr
                for name, attr in self.node.attributes.items()
                if name not in FOREIGN_ATTRIBUTES
            }
        made = self._insert(
            op_type,
            inputs,
            attributes=attributes,
            name=f"{label(self.node)}_{op_type}",
            like=self.node.outputs[0],
        )
        made.outputs[0].type = ir.TensorType(dtype)
        return made.outputs[0]

    def quantize(
        self, floats: Value, scale: Value, zero: Value | None, dtype: ir.DataType
    ) -> Value:
        """Add a QuantizeLinear and return its codes."""
        if zero is None:
            array = np.zeros((), INTEGERS[dtype.name.lower()][2])
            zero = self.graph.constant(f"{label(self.node)}_zero_point", array)
        made = self._insert(
            "QuantizeLinear",
            [floats, self._scalar(scale), self._scalar(zero)],
            name=f"{label(self.node)}_q",
            like=self.node.outputs[0],
        )
        made.outputs[0].type = ir.TensorType(dtype)
        return made.outputs[0]

    def attributes(self, *names: str) -> None:
        """Check that attributes are there which the float operator must have.

        Raises:
            RefusedError: One is missing: the checker knows ONNX's own operators only.
        """
        for name in names:
            if self.graph.attribute(self.node, name) is None:
                raise RefusedError(f"its attribute {name} is missing")

    def plain_layout(self) -> None:
        """Check that channels come where ONNX has them.

        Raises:
            RefusedError: They come last.
        """
        if self.graph.attribute(self.node, "channels_last", 0):
            raise RefusedError("its channels come last (channels_last = 1)")

    def _insert(self, op_type: str, inputs: Sequence[Value | None], **options: Any) -> Node:
        made = self.graph.insert(op_type, inputs, before=self.node, **options)
        self._made.append(made)
        return made

    def _scalar(self, value: Value) -> Value:
        """Return a constant of shape [1] as one of shape []: ONNX takes the first for one a channel."""
        tensor = self.graph.tensor(value)
        if tensor is None or tensor.size != 1 or len(tensor.shape) == 0:
            return value
        return self.graph.constant(value.name or "scale", tensor.numpy().reshape(()))
