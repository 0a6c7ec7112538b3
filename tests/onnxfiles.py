"""Small models built node by node, and what loading says of a bad one."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qgraph import onnx_io
from qgraph.errors import ModelError

FLOAT = TensorProto.FLOAT


def info(name: str, dtype: int = FLOAT, shape: object = (4,)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def build(nodes, inputs, outputs, initializers=(), *, opset=21, domains=(), **kwargs):
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(initializers))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **kwargs)


def linear(weight: onnx.TensorProto | None = None) -> onnx.ModelProto:
    weight = weight or numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    node = helper.make_node("Add", ["x", "w"], ["y"], name="add")
    return build([node], [info("x")], [info("y")], [weight])


def round_trip(proto: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Through memory and through a file; both must agree."""
    graph = onnx_io.load(proto)
    again = onnx_io.to_proto(graph)
    onnx_io.save(graph, folder / "model.onnx")
    assert onnx.load(folder / "model.onnx") == again
    onnx.checker.check_model(again)
    return again


def reason(source: object) -> str:
    with pytest.raises(ModelError) as error:
        onnx_io.load(source)
    message = str(error.value)
    assert "\n" not in message
    return message
