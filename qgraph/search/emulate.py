"""Writes a model that computes in half precision as one in float32 that rounds after every operator.

Engines without half kernels, such as onnxruntime's CPU provider, compute such a model in float32 between casts
and drop the casts between neighbours: what the target rounds away would go unseen.
"""

import numpy as np
import onnx_ir as ir

from qgraph.graph import Graph, Node, Value
from qgraph.passes.half_types import MOVEMENT

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# x (2^16 + 1) - (x (2^16 + 1) - x) has the leading 8 of float32's 24 digits, as bfloat16 has (Dekker
# 1971, "A floating-point technique for extending the available precision", section 5).
_SPLIT = 2.0**16 + 1


def emulate(graph: Graph) -> bool:
    """Rewrite a graph in place.

    Args:
        graph: The model; its inputs and outputs are in float32.

    Returns:
        Whether anything of it was in half precision; False, too, where inputs or outputs are.
    """
    if any(v.dtype in _HALVES for v in (*graph.inputs, *graph.outputs)):
        return False
    results = [out for node in graph.nodes() for out in node.outputs if out.dtype in _HALVES]
    constants = [v for v in graph.initializers if v.dtype in _HALVES]
    for value in constants:
        array = graph.array(value)
        if array is not None:
            plain = graph.constant(f"{value.name}_float32", array.astype("float32"))
            for use in list(value.uses()):
                graph.set_input(use.node, use.idx, plain)
    graph.drop_unread_initializers()
    for value in results:
        node, dtype = value.producer(), value.dtype
        assert node is not None and dtype is not None
        value.type = ir.TensorType(ir.DataType.FLOAT)
        _in_float(graph, node)
        casts = node.op_type == "Cast"
        if casts or node.op_type not in MOVEMENT:  # what only moves elements rounds none
            _round(graph, value, node, dtype)
    return bool(results or constants)


def _in_float(graph: Graph, node: Node) -> None:
    """Let attributes that name a type name float32."""
    for name in ("to", "dtype"):
        if graph.attribute(node, name) in map(int, _HALVES):
            graph.set_attribute(node, name, int(ir.DataType.FLOAT))
    filled = (
        graph.attribute(node, "value") if node.op_type in ("Constant", "ConstantOfShape") else None
    )
    if filled is not None and filled.dtype in _HALVES:
        array = filled.numpy().astype("float32")
        graph.set_attribute(node, "value", ir.AttrTensor("value", ir.tensor(array)))


def _round(graph: Graph, value: Value, node: Node, dtype: ir.DataType) -> None:
    """Round a value for all that read it."""
    uses = [(use.node, use.idx) for use in value.uses()]
    name = f"{value.name}_rounded"
    if dtype == ir.DataType.BFLOAT16:
        factor = graph.constant("split", np.array(_SPLIT, np.float32))
        large = graph.insert("Mul", [value, factor], after=node, like=value, name=f"{name}_0")
        low = graph.insert(
            "Sub", [large.outputs[0], value], after=large, like=value, name=f"{name}_1"
        )
        inputs = [large.outputs[0], low.outputs[0]]
        last = graph.insert("Sub", inputs, after=low, like=value, name=name)
    else:
        down = graph.insert("Cast", [value], after=node, like=value, name=f"{name}_0")
        graph.set_attribute(down, "to", int(dtype))
        down.outputs[0].type = ir.TensorType(dtype)
        # Something must stand between two Casts, or engines take both for nothing.
        held = graph.insert("Max", [down.outputs[0]], after=down, like=value, name=f"{name}_1")
        held.outputs[0].type = ir.TensorType(dtype)
        last = graph.insert("Cast", [held.outputs[0]], after=held, like=value, name=name)
        graph.set_attribute(last, "to", int(ir.DataType.FLOAT))
    for reader, index in uses:
        graph.set_input(reader, index, last.outputs[0])
