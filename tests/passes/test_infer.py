import numpy as np
from harness import model

from qgraph import onnx_io
from qgraph.graph import Graph
from qgraph.passes.infer import InferShapes
from qgraph.pipeline import Pipeline


def test_it_fills_in_what_a_rewrite_left_open() -> None:
    graph = onnx_io.load(model("g (float[n,3] x) => (float[n,3] z) { y = Relu(x) z = Neg(y) }"))
    relu = next(graph.nodes("Relu"))
    relu.outputs[0].shape = relu.outputs[0].type = None
    (stage,) = Pipeline([InferShapes()]).run(graph)
    assert Graph.shape(relu.outputs[0]) == ("n", 3)
    assert stage.report.warnings == []


def test_a_failure_is_a_warning_and_nothing_is_lost() -> None:
    text = "g (float[2,3] x) => (float[2,3] z) { z = Add(x, c) }"
    graph = onnx_io.load(model(text, {"c": np.ones((2, 3), np.float32)}))
    add = next(graph.nodes("Add"))
    add.resize_inputs(1)
    (stage,) = Pipeline([InferShapes()]).run(graph)
    assert next(graph.nodes("Add")) is add
    assert len(stage.report.warnings) == 1
    assert "shape inference failed" in stage.report.warnings[0]
