"""The tensors behind Constant nodes, whatever form they are written in."""

import numpy as np
import onnx_ir as ir


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the tensor of a Constant node; None for another node, or a reference attribute.

    https://onnx.ai/onnx/operators/onnx__Constant.html lists the forms. Sparse ones never reach
    a graph: loading turns them into sparse initializers.
    """
    if node.op_type != "Constant" or node.domain or len(node.attributes) != 1:
        return None
    attr = next(iter(node.attributes.values()))
    if attr.is_ref():
        return None
    name = node.outputs[0].name
    match attr.name:
        case "value":
            # Not `as_tensor`, whose check of the type takes 0.2 ms.
            tensor: ir.TensorProtocol = attr.value
            return tensor
        case "value_float" | "value_floats":
            return ir.Tensor(np.array(attr.value, np.float32), name=name)
        case "value_int" | "value_ints":
            return ir.Tensor(np.array(attr.value, np.int64), name=name)
        case "value_string":
            return ir.StringTensor([attr.as_string().encode()], shape=ir.Shape([]), name=name)
        case "value_strings":
            texts = [text.encode() for text in attr.as_strings()]
            return ir.StringTensor(texts, shape=ir.Shape([len(texts)]), name=name)
    return None
