"""Running single nodes on constants with onnx's reference evaluator."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from qgraph.graph import Node

Arrays = Sequence[NDArray[Any] | None]

# Arrays of these types are what they seem; 8-bit floats and 4-bit integers stay as the model has
# them, since a cast of them is how weight-only quantization is written.
FOLDABLE = frozenset(
    {
        ir.DataType.BOOL,
        ir.DataType.INT8,
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.UINT8,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
    }
)


@contextmanager
def quiet_numpy() -> Iterator[None]:
    """Keep numpy from warning about infinities, which are results like others here.

    Casting nan to an integer warns too; the operator defines no result for it either.
    """
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


class Evaluator:
    """Evaluates nodes; those of the same operator and attributes share one prepared evaluator."""

    def __init__(self, opset: int) -> None:
        """Prepare for nodes of one default opset."""
        self._opset = opset
        self._ready: dict[Any, ReferenceEvaluator] = {}

    def run(self, node: Node, inputs: Arrays) -> list[NDArray[Any]]:
        """Return the values of the node's outputs.

        Raises:
            Exception: Whatever the evaluator raises on inputs that the operator does not take.
        """
        if node.op_type == "Slice":
            inputs = _clamped(inputs)
        present = tuple(array is not None for array in inputs)
        evaluator = self._prepared(node, present)
        feeds = {f"i{index}": array for index, array in enumerate(inputs) if array is not None}
        return [np.asarray(result) for result in evaluator.run(None, feeds)]

    def _prepared(self, node: Node, present: tuple[bool, ...]) -> ReferenceEvaluator:
        attributes = list(node.attributes.values())
        if any(attr.type == ir.AttributeType.TENSOR for attr in attributes):
            return self._prepare(node, present)
        values = tuple((attr.name, attr.value) for attr in attributes)
        key = (node.op_type, present, len(node.outputs), values)
        if key not in self._ready:
            self._ready[key] = self._prepare(node, present)
        return self._ready[key]

    def _prepare(self, node: Node, present: tuple[bool, ...]) -> ReferenceEvaluator:
        names = [f"i{index}" if there else "" for index, there in enumerate(present)]
        outputs = [f"o{index}" for index in range(len(node.outputs))]
        proto = onnx.helper.make_node(node.op_type, names, outputs)
        proto.attribute.extend(
            ir.serde.serialize_attribute(attr) for attr in node.attributes.values()
        )
        # The evaluator takes no notice of element types and shapes here, only of names.
        inputs, results = (
            [
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
                for name in side
            ]
            for side in (filter(None, names), outputs)
        )
        graph = onnx.helper.make_graph([proto], "node", inputs, results)
        opsets = [onnx.helper.make_opsetid("", self._opset)]
        return ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))


def _clamped(inputs: Arrays) -> Arrays:
    """Clamp the starts of a Slice that goes down, as the operator's definition says.

    The evaluator slices as Python does, which takes nothing from a start before the first element.
    """
    if len(inputs) < 5 or inputs[4] is None or inputs[1] is None or inputs[0] is None:
        return inputs
    data, starts, steps = inputs[0], inputs[1], inputs[4]
    axes = inputs[3] if inputs[3] is not None else np.arange(len(starts))
    lowest = -np.array(data.shape, np.int64)[axes]
    clamped = np.where(steps < 0, np.maximum(starts, lowest), starts)
    return [data, clamped.astype(starts.dtype), *inputs[2:]]
