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
    graph = onnx_io.load(
        model(
            "g (float[2,3] x) => (float[2,3] z) { z = Add(x, c) }",
            {"c": np.ones((2, 3), np.float32)},
        )
    )
    graph.main.inputs[0].shape = graph.main.inputs[0].shape.copy()
    graph.main.inputs[0].shape[0] = 5
    (stage,) = Pipeline([InferShapes()]).run(graph)
    assert [n.op_type for n in graph.nodes()] == ["Add"]
    assert len(stage.report.warnings) == 1 and "shape inference" in stage.report.warnings[0]
