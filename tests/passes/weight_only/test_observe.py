"""Parts of a graph that are run: what they hold, and for how long."""

import gc
import weakref

import numpy as np
from folds import normal
from harness import model

from qgraph import onnx_io
from qgraph.passes.weight_only.layers import find_layers
from qgraph.passes.weight_only.observe import opened


def chain():
    text = "g (float[n,64] x) => (float[n,64] y) { [a] m = MatMul (x, w)  y = Relu (m) }"
    graph = onnx_io.load(model(text, {"w": normal(0, 64, 64)}))
    graph.name_nodes()
    return graph


def test_weights_of_a_part_are_let_go_when_it_has_run():
    graph = chain()
    (x,), (weight,) = graph.main.inputs, graph.initializers
    y = graph.outputs[0]
    array = normal(1, 64, 64)
    known = weakref.ref(array)
    feeds = {x: normal(2, 3, 64)}
    gc.collect()
    gc.disable()
    try:
        with opened(graph, list(graph.nodes()), feeds, [y], {weight: array}) as session:
            want = np.maximum(feeds[x] @ array, 0)
            np.testing.assert_allclose(
                session.run({"x": feeds[x]})["y"], want, rtol=1e-5, atol=1e-5
            )
        # The part's nodes and values form cycles, for which nobody collects here.
        del array
        assert known() is None
    finally:
        gc.enable()
    # The graph that the part came from has its weight still.
    np.testing.assert_array_equal(graph.array(weight), normal(0, 64, 64))


def test_a_weight_on_disk_is_read_again_after_its_memory_was_given_back(tmp_path):
    onnx_io.save(chain(), tmp_path / "m.onnx", external=True)
    graph = onnx_io.load(tmp_path / "m.onnx")
    ((layer,), _) = find_layers(graph, exclude=(), head=True, least=1)
    before = layer.matrix(graph)
    layer.release(graph)
    np.testing.assert_array_equal(before, normal(0, 64, 64))
    np.testing.assert_array_equal(layer.matrix(graph), normal(0, 64, 64))
