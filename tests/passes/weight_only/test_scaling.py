"""Where scales go; that folding them changes nothing is tested in test_quantize."""

import numpy as np
import pytest
from folds import normal
from harness import model
from hypothesis import given
from hypothesis import strategies as st

from qgraph import onnx_io
from qgraph.passes.weight_only.layers import find_layers
from qgraph.passes.weight_only.scaling import columns_of, factors, norm_place, product_candidates
from qgraph.passes.weight_only.stages import cut


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 999))
def test_columns_are_found_whatever_their_order(width, channels, seed):
    rng = np.random.default_rng(seed)
    columns = rng.integers(0, width, channels)
    mixing = rng.uniform(0.1, 1, (6, 5)).astype(np.float32)
    product = rng.uniform(0.5, 1.5, (5, width)).astype(np.float32)
    by = factors(width)
    # As attention does: rows are mixed, columns are not.
    results = [mixing @ (product * f)[:, columns] for f in (np.float32(1), *by)]
    np.testing.assert_array_equal(columns_of(*results, by), columns)


@pytest.mark.parametrize(
    "function",
    [
        lambda p: np.tanh(p[:, :8]),
        lambda p: p[:, :8] + p[:, 8:16],
        lambda p: p[:, :8] * p[:, 8:16],
        lambda p: p[:, :8] + 1,
        lambda p: 0 * p[:, :8],
        lambda p: np.sort(p[:, :8], axis=1),
    ],
    ids=["tanh", "sum of two", "product of two", "shifted", "dead", "sorted"],
)
def test_anything_else_is_no_column(function):
    product = np.random.default_rng(0).uniform(0.5, 1.5, (5, 16)).astype(np.float32)
    by = factors(16)
    assert columns_of(*[function(product * f) for f in (np.float32(1), *by)], by) is None


def groups(text, **arrays):
    graph = onnx_io.load(model(text, arrays))
    for node in graph.nodes():
        node.name = node.outputs[0].name
    layers, _ = find_layers(graph, exclude=(), head=True, least=1)
    found = {g.layers[0].name: g for stage in cut(graph, layers) for g in stage.groups}
    return graph, layers, found


NORM = """g (float[n,4] x) => (float[n,4] y, float[n,4] z) {
    m = LayerNormalization (x, gamma, beta)
    a = MatMul (m, w)
    b = MatMul (m, w2)
    y = Relu (a)
    z = Relu (b) }"""
VECTORS = {"gamma": normal(3, 4), "beta": normal(4, 4), "w": normal(1, 4, 4), "w2": normal(2, 4, 4)}


def test_a_norm_that_only_the_group_reads_takes_the_scale():
    graph, _, found = groups(NORM, **VECTORS)
    place = norm_place(graph, found["a"])
    assert place is not None and place.kind == "norm" and place.node.name == "m"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("z = Relu (b)", "z = Add (b, m)"),
        ("float[n,4] z", "float[n,4] m"),
        ("m = LayerNormalization (x, gamma, beta)", "m = Mul (x, x)"),
    ],
    ids=["also read by a residual", "also a graph output", "no constant"],
)
def test_no_norm_takes_it_otherwise(old, new):
    text = NORM.replace(old, new)
    if "float[n,4] m" in text:
        text = text.replace("z = Relu (b)", "z = Relu (b)").replace(
            ", float[n,4] m)", ", float[n,4] m, float[n,4] z)"
        )
    graph, _, found = groups(text, **VECTORS)
    assert norm_place(graph, found["a"]) is None


def test_a_norm_written_as_a_mul_takes_it():
    text = NORM.replace("LayerNormalization (x, gamma, beta)", "Mul (x, gamma)")
    graph, _, found = groups(text, **{k: v for k, v in VECTORS.items() if k != "beta"})
    place = norm_place(graph, found["a"])
    assert place is not None and place.node.op_type == "Mul"


GATED = """g (float[n,4] x) => (float[n,4] y) {
    a = MatMul (x, gate)
    s = Sigmoid (a)
    u = MatMul (x, up)
    v = Add (u, bias)
    p = Mul (s, v)
    y = MatMul (p, down) }"""
MATRICES = {n: normal(i, 4, 4) for i, n in enumerate(("gate", "up", "down"))} | {
    "bias": normal(7, 4)
}


def test_products_that_may_carry_the_scale_are_found_with_their_bias():
    graph, layers, found = groups(GATED, **MATRICES)
    places = product_candidates(graph, found["y"], layers)
    assert [(p.layer.name, p.value.name) for p in places] == [("u", "v")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("float[n,4] y)", "float[n,4] v, float[n,4] y)"),
        ("y = MatMul (p, down)", "q = MatMul (p, down)\n    y = Add (q, v)"),
        ("y = MatMul (p, down)", "q = MatMul (p, down)\n    y = Add (q, p)"),
    ],
    ids=["a graph output", "read elsewhere", "what it becomes is read elsewhere"],
)
def test_products_that_something_else_sees_are_not(old, new):
    graph, layers, found = groups(GATED.replace(old, new), **MATRICES)
    group = next(g for g in found.values() if g.data.name == "p")
    assert product_candidates(graph, group, layers) == []
