"""Stages: every node runs once, on what earlier stages kept, and gives what the whole graph gives."""

import numpy as np
import pytest
from folds import normal
from harness import model, run_reference
from llamas import TINY, random_weights

from models.zoo.llama_onnx import build
from qgraph import onnx_io
from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.passes.weight_only.boundary import Boundary
from qgraph.passes.weight_only.layers import find_layers
from qgraph.passes.weight_only.observe import forget, keep_inputs, run_stage, summed_up
from qgraph.passes.weight_only.stages import cut

RESIDUAL = """g (float[n,4] x) => (float[n,4] y) {
    a = MatMul (x, w1)
    r = Relu (a)
    b = MatMul (r, w2)
    s = Add (a, b)
    c = MatMul (s, w3)
    d = MatMul (x, w4)
    t = Add (c, d)
    e = MatMul (t, w5)
    y = Add (e, x) }"""
ARRAYS = {f"w{n}": normal(n, 4, 4) for n in range(1, 6)}


def decoder(**kinds):
    return Graph(build(TINY, random_weights(), **kinds))


def layers_of(graph, **options):
    found, _ = find_layers(graph, exclude=(), head=False, least=1, **options)
    return found


def names(stage):
    return [[layer.name for layer in group.layers] for group in stage.groups]


def test_layers_that_no_layer_leads_to_come_first_and_so_on():
    graph = onnx_io.load(model(RESIDUAL, ARRAYS))
    graph.name_nodes()
    layers = layers_of(graph)
    writes = {layer.name: layer.node.outputs[0].name for layer in layers}
    found = [[[writes[n] for n in group] for group in names(stage)] for stage in cut(graph, layers)]
    assert found == [[["a", "d"]], [["b"]], [["c"]], [["e"]]]


def test_a_decoder_has_four_stages_a_block():
    graph = decoder()
    stages = cut(graph, layers_of(graph))
    kinds = [sorted(len(group) for group in names(stage)) for stage in stages]
    assert kinds == [[3], [1], [2], [1]] * TINY.layers


@pytest.mark.parametrize("make", [decoder, lambda: onnx_io.load(model(RESIDUAL, ARRAYS))])
def test_nodes_run_in_one_stage_and_reads_were_kept(make):
    graph = make()
    graph.name_nodes()
    stages = cut(graph, layers_of(graph))
    kept, seen = set(graph.inputs), set()
    for stage in stages:
        assert set(stage.reads) <= kept
        products = {n for n in stage.nodes if n.op_type == "MatMul"}
        assert not products & seen, "a product is computed twice"
        seen |= products
        kept |= set(stage.keeps)
        kept -= set(stage.drops)
    assert not kept - set(graph.inputs), "kept, though nothing reads it any more"


def whole(graph, names, feeds):
    proto = onnx_io.to_proto(graph)
    known = {o.name for o in proto.graph.output}
    for name in names:
        if name not in known:
            proto.graph.output.add().name = name
    return run_reference(proto, feeds)


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_layers_see_what_they_see_in_the_whole_graph(memory):
    graph = decoder()
    stages = cut(graph, layers_of(graph))
    rng = np.random.default_rng(0)
    # Of several lengths.
    data = [{"input_ids": rng.integers(0, TINY.vocabulary, (1, 5 + n))} for n in range(4)]
    inputs = [group.data.name for stage in stages for group in stage.groups]
    expected = {}
    for feeds in data:
        for name, x in whole(decoder(), inputs, feeds).items():
            if name in inputs:
                rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
                expected[name] = expected.get(name, 0) + rows.T @ rows
    count = sum(feeds["input_ids"].size for feeds in data)
    checked = 0
    with Boundary(memory) as boundary:
        keep_inputs(stages, data, boundary)
        for stage in stages:
            run_stage(graph, stage, {}, boundary, Context(), "testing")
            for group in stage.groups:
                found = summed_up(group, boundary)
                assert found.rows == count
                np.testing.assert_allclose(
                    found.gram()[0] * count, expected[group.data.name], rtol=2e-3, atol=1e-4
                )
                checked += 1
            forget(stage, boundary)
    assert checked == 4 * TINY.layers


def test_what_a_layer_computes_with_another_weight_reaches_those_behind_it():
    graph = onnx_io.load(model(RESIDUAL, ARRAYS))
    graph.name_nodes()
    layers = layers_of(graph)
    stages = cut(graph, layers)
    x = normal(9, 3, 4)
    first = layers[0]
    assert first.node.outputs[0].name == "a"
    with Boundary(1 << 20) as boundary:
        keep_inputs(stages, [{"x": x}], boundary)
        run_stage(graph, stages[0], {}, boundary, Context(), "testing")
        run_stage(
            graph, stages[1], {first.weight: 2 * ARRAYS["w1"]}, boundary, Context(), "testing"
        )
        seen = boundary.get(0, ["r"])["r"]
    np.testing.assert_allclose(seen, np.maximum(2 * x @ ARRAYS["w1"], 0), rtol=1e-5)


def test_a_node_that_draws_lots_is_not_run_again():
    text = """g (float[n,4] x) => (float[n,4] y) {
        z = RandomNormalLike (x)
        s = Add (x, z)
        a = MatMul (s, w1)
        t = Add (a, s)
        y = MatMul (t, w2) }"""
    graph = onnx_io.load(model(text, {"w1": ARRAYS["w1"], "w2": ARRAYS["w2"]}))
    graph.name_nodes()
    found, _ = find_layers(graph, exclude=(), head=True, least=1)
    stages = cut(graph, found)
    assert [[n.op_type for n in stage.nodes] for stage in stages] == [
        ["RandomNormalLike", "Add"],
        ["MatMul", "Add"],
    ]
    assert [v.name for v in stages[0].keeps] == ["s"]
