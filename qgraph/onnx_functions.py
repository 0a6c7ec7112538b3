"""ONNX's own definitions of operators in terms of others."""

import onnx
import onnx_ir as ir
from onnx.inliner import inline_selected_functions

from qgraph.graph import Node


def function_body(node: Node, opset: int) -> ir.Graph | None:
    """Return the graph that ONNX defines an operator of its standard by.

    Args:
        node: The node; the types of its inputs decide between definitions, where there are several.
        opset: Version of the operators.

    Returns:
        A graph whose inputs and outputs are the node's, omitted ones left out; None where the
        standard has no definition, or not for these types.
    """
    alone = onnx.helper.make_model(
        onnx.helper.make_graph(
            [ir.serde.serialize_node(node)],
            "body",
            [_info(value) for value in dict.fromkeys(node.inputs) if value is not None],
            [_info(value) for value in node.outputs if value.name],
        ),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
    )
    if None in node.inputs:
        # The inliner asks for the type of an omitted input, too, and takes any.
        some = next(value for value in node.inputs if value is not None)
        alone.graph.value_info.append(_info(some))
        alone.graph.value_info[-1].name = ""
    try:
        inlined = inline_selected_functions(alone, [("", node.op_type)], False, True)
    except (RuntimeError, TypeError, ValueError):  # what its C++ code raises, by no list
        return None
    body = ir.serde.deserialize_model(inlined).graph
    return None if any(each.op_type == node.op_type for each in body) else body


def _info(value: ir.Value) -> onnx.ValueInfoProto:
    return ir.serde.serialize_value(value)
