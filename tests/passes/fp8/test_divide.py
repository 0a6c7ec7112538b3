"""Values divided by a power of two in what computes them: the value alone, and exactly."""

import numpy as np
import pytest
from harness import model, random_feeds, run_reference

from qgraph import onnx_io
from qgraph.passes.fp8.divide import divide, places


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


ARRAYS = {
    "g": rand(8),
    "b": rand(8, seed=1),
    "w": rand(8, 8, seed=2),
    "v": rand(8, 8, seed=3),
    "four": np.array([2, 3, 2, 4]),
    "three": np.array([2, 3, 8]),
    "two": np.float32(2),
}

DIVISIBLE = {
    "norm": "v1 = LayerNormalization(x, g, b)",
    "norm without bias": "v1 = LayerNormalization(x, g)",
    "product": "v1 = MatMul(x, w)",
    "product, bias": "a = MatMul(x, w)  v1 = Add(a, b)",
    "bias first": "a = MatMul(x, w)  v1 = Add(b, a)",
    "relu": "a = MatMul(x, w)  c = Add(a, b)  v1 = Relu(c)",
    "gated": "u = MatMul(x, w)  h = MatMul(x, v)  s = Sigmoid(h)  v1 = Mul(s, u)",
    "gated, turned": "u = MatMul(x, w)  h = MatMul(x, v)  s = Sigmoid(h)  v1 = Mul(u, s)",
    "scaled": "s = Gelu(x)  v1 = Mul(s, two)",
    "attention": """a = MatMul(x, w)  c = Add(a, b)  r = Reshape(c, four)
        t = Transpose <perm = [0, 2, 1, 3]> (r)
        q = Reshape(x, four)  qt = Transpose <perm = [0, 2, 1, 3]> (q)
        k = Transpose <perm = [0, 2, 3, 1]> (q)  e = MatMul(qt, k)  p = Softmax(e)
        o = MatMul(p, t)  ot = Transpose <perm = [0, 2, 1, 3]> (o)  v1 = Reshape(ot, three)""",
    "two products": "a = MatMul(x, w)  c = MatMul(x, v)  v1 = Add(a, c)",
}
KEPT = {
    "gelu": "a = MatMul(x, w)  v1 = Gelu(a)",
    "an input": "v1 = Identity(x)",
    "read elsewhere": "v1 = LayerNormalization(x, g, b)  e = Neg(v1)  z = Neg(e)",
    "read elsewhere before": "a = MatMul(x, w)  v1 = Relu(a)  z = Neg(a)",
    "a shortcut": "a = MatMul(x, w)  v1 = Add(a, x)",
    "a square": "a = MatMul(x, w)  v1 = Mul(a, a)",
    "added twice": "a = MatMul(x, w)  v1 = Add(a, a)",
    "a bias that is not divided": "s = Sigmoid(x)  v1 = Add(s, b)",
}


def built(body):
    more = ", float[2,3,8] z" if " z = " in body else ""
    text = f"g (float[2,3,8] x) => (float[2,3,8] y{more}) {{ {body} y = Sigmoid(v1) }}"
    used = {name: a for name, a in ARRAYS.items() if f"{name})" in body or f"{name}," in body}
    return model(text, used, opset=20)


def target_of(graph):
    value = next(v for n in graph.nodes() for v in n.outputs if v.name == "v1")
    return value, [n for n in graph.readers(value) if n.op_type == "Sigmoid"]


def with_value(proto):
    proto.graph.output.append(type(proto.graph.output[0])(name="v1"))
    return proto


@pytest.mark.parametrize("name", DIVISIBLE)
@pytest.mark.parametrize("scale", [4.0, 0.125])
def test_the_value_is_divided_exactly(name, scale):
    proto = built(DIVISIBLE[name])
    graph = onnx_io.load(proto)
    found = places(graph, *target_of(graph))
    assert found
    divide(graph, found, scale)
    feeds = random_feeds(proto)
    want = run_reference(with_value(proto), feeds)["v1"]
    got = run_reference(with_value(onnx_io.to_proto(graph)), feeds)["v1"]
    # A power of two moves no digit; only reorderings of sums inside the engine could.
    np.testing.assert_allclose(got, want / scale, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", KEPT)
def test_there_is_no_place(name):
    graph = onnx_io.load(built(KEPT[name]))
    assert places(graph, *target_of(graph)) is None


def test_a_graph_output_has_no_place():
    graph = onnx_io.load(
        model("g (float[3,8] x) => (float[3,8] y) { y = MatMul(x, w) }", {"w": ARRAYS["w"]})
    )
    assert places(graph, graph.outputs[0], []) is None


def test_shared_constants_stay_for_their_other_readers():
    body = "a = MatMul(x, w)  v1 = Relu(a)  c = MatMul(x, w)  z = Neg(c)"
    proto = built(body)
    graph = onnx_io.load(proto)
    found = places(graph, *target_of(graph))
    divide(graph, found, 2.0)
    feeds = random_feeds(proto)
    want, got = run_reference(proto, feeds), run_reference(onnx_io.to_proto(graph), feeds)
    np.testing.assert_array_equal(got["z"], want["z"])
    assert not np.array_equal(got["y"], want["y"])
