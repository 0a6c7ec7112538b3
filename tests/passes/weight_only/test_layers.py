import numpy as np
import pytest
from folds import normal
from harness import model

from qgraph import onnx_io
from qgraph.passes.weight_only.layers import find_layers

TEXT = """g (float[n,4] x, float[2,n,4] z) => (float[n,4] y, float[2,n,4] u) {
    a = MatMul (x, w)
    b = Relu (a)
    c = MatMul (b, w)
    s = MatMul (c, small)
    t = Transpose (s)
    p = MatMul (s, t)
    q = MatMul (p, s)
    e = MatMul (z, experts)
    u = Relu (e)
    h = MatMul (q, head)
    y = Add (h, bias) }"""
ARRAYS = {
    "w": normal(1, 4, 4),
    "small": normal(2, 4, 2),
    "experts": normal(3, 2, 4, 4),
    "head": normal(4, 2, 4),
    "bias": normal(5, 4),
}


def found(**options):
    graph = onnx_io.load(model(TEXT, ARRAYS))
    for node in graph.nodes():
        node.name = node.outputs[0].name
    return find_layers(graph, **{"exclude": (), "head": False, "least": 9} | options)


def test_layers_with_one_weight_are_one():
    layers, _ = found()
    assert [[n.name for n in layer.nodes] for layer in layers] == [["a", "c"], ["e"]]
    assert [layer.shape for layer in layers] == [(4, 4), (2, 4, 4)]


def test_every_other_product_has_its_reason():
    _, refused = found()
    assert refused == {
        "s": "its weight [4, 2] has fewer than 9 elements",
        "p": "both operands are activations",
        "q": "both operands are activations",
        "h": "its weight [2, 4] has fewer than 9 elements",
    }


@pytest.mark.parametrize(("pattern", "gone"), [("a", {"a", "c"}), ("MatMul", {"a", "c", "e"})])
def test_excluded_ones_stay(pattern, gone):
    _, refused = found(exclude=(pattern,))
    excluded = {name for name, reason in refused.items() if reason == f"excluded by {pattern!r}"}
    assert excluded <= gone | {"s", "p", "q", "h"} and ("a" in excluded)


def test_the_head_is_known_behind_its_bias():
    _, refused = found(least=1)
    assert "graph output" in refused["h"]
    layers, refused = found(least=1, head=True)
    assert "h" in [layer.name for layer in layers] and "h" not in refused


def test_half_weights_count_and_integers_do_not():
    text = """g (float16[n,4] x, int32[n,4] z) => (float16[n,4] y, int32[n,4] u) {
        a = MatMul (x, w)
        y = Exp (a)
        u = MatMul (z, i) }"""
    arrays = {"w": normal(1, 4, 4).astype(np.float16), "i": np.ones((4, 4), np.int32)}
    graph = onnx_io.load(model(text, arrays))
    graph.name_nodes()
    layers, refused = find_layers(graph, exclude=(), head=True, least=1)
    assert len(layers) == 1 and layers[0].matrix(graph).dtype == np.float32
    assert list(refused.values()) == ["its weight is int32"]
