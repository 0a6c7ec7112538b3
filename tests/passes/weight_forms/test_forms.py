"""What holds for every form: shared weights, weights on disk, subgraphs, what is no MatMul."""

import dataclasses
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from harness import model, run_reference
from weightforms import matmul, refusal, simulated

import qgraph
from qgraph import onnx_io
from qgraph.encoding import Encoding
from qgraph.facts import QuantizedWeight
from qgraph.passes.weight_forms import FORMS, put
from qgraph.passes.weights.codebooks import NF4
from qgraph.passes.weights.results import BlockCodebook, ChannelCodebook, FloatZero
from qgraph.pipeline import Reject
from qgraph.registry import load

SHAPE = (64, 48)
RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 16, SHAPE).astype(np.uint8)
SCALE = RNG.uniform(0.01, 0.1, (2, 48)).astype(np.float32)
ZERO = RNG.integers(0, 16, (2, 48))


def results(codes):
    """One result for each form that keeps its codes as they are, by the form's name."""
    uniform = QuantizedWeight(codes, Encoding("uint8", SCALE, ZERO, (32, 1)), 0.0)
    floats = FloatZero(codes, SCALE, ZERO.astype(np.float32) + np.float32(0.5), (32, 1), 4)
    blocks = BlockCodebook(codes, RNG.uniform(1, 2, 48).astype(np.float32), NF4, 64)
    table = RNG.standard_normal((16, 48)).astype(np.float32)
    channels = ChannelCodebook(codes, table, np.zeros((0, 2), int), np.zeros(0, np.float32), 4)
    return {
        "dequantize_linear": uniform,
        "matmul_nbits": floats,
        "cast_scale": floats,
        "matmul_bnb4": blocks,
        "block_codebook": blocks,
        "channel_codebook": channels,
    }


BY_NAME = {reference.partition(":")[2]: load(reference) for reference in FORMS}
each_form = pytest.mark.parametrize("name", results(CODES))


@pytest.mark.parametrize("name", BY_NAME)
def test_is_documented(name):
    doc = inspect.cleandoc(BY_NAME[name].__doc__ or "")
    for section in ("Before", "After", "Args", "Returns"):
        assert re.search(rf"^{section}\b.*:$", doc, re.MULTILINE), section


@each_form
def test_layers_that_share_a_weight_share_its_constants(name):
    result = results(CODES)[name]
    proto = model(
        "g (float[M, 64] x) => (float[M, 48] y, float[M, 48] z)"
        " { [first] y = MatMul (x, w) n = Neg (x) [second] z = MatMul (n, w) }",
        {"w": np.zeros(SHAPE, np.float32)},
    )
    graph = onnx_io.load(proto)
    counts = []
    for node in list(graph.nodes("MatMul")):
        value = BY_NAME[name](graph, node, result)
        assert not isinstance(value, Reject)
        put(graph, node, value)
        graph.drop_unread_initializers()
        counts.append(len(graph.initializers))
    # The first time the float weight is still there for the second.
    assert counts[0] == counts[1] + 1
    names = [node.name for node in graph.nodes()]
    assert "first" in names and "second" in names and len(set(names)) == len(names)
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    want = x.astype(np.float64) @ simulated(result)
    have = run_reference(onnx_io.to_proto(graph), {"x": x})
    np.testing.assert_allclose(have["y"], want, rtol=0, atol=1e-5 * np.abs(want).max())
    np.testing.assert_array_equal(have["z"], -have["y"])


@each_form
def test_a_head_that_is_a_table_too(name):
    result = results(CODES)[name]
    table = RNG.standard_normal((48, 64)).astype(np.float32)
    proto = model(
        "g (int64[3] ids) => (float[3, 48] y) { x = Gather (t, ids)"
        " w = Transpose <perm = [1, 0]> (t) [head] y = MatMul (x, w) }",
        {"t": table},
    )
    graph = onnx_io.load(proto)
    [node] = graph.nodes("MatMul")
    put(graph, node, BY_NAME[name](graph, node, result))
    out = onnx_io.to_proto(graph)
    assert all("t" not in n.input for n in out.graph.node if n.op_type == "Transpose")
    ids = np.array([4, 0, 47])
    want = table[ids].astype(np.float64) @ simulated(result)
    have = run_reference(out, {"ids": ids})["y"]
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-5 * np.abs(want).max())


@each_form
def test_codes_on_disk_are_packed_when_they_are_written(name, tmp_path: Path):
    mapped = np.memmap(tmp_path / "codes", np.uint8, "w+", shape=SHAPE)
    mapped[:] = CODES
    eager = results(CODES)[name]
    files = []
    for result in (eager, dataclasses.replace(eager, codes=mapped)):
        graph = onnx_io.load(matmul(SHAPE))
        [node] = graph.nodes("MatMul")
        value = BY_NAME[name](graph, node, result)
        assert not isinstance(value, Reject)
        put(graph, node, value)
        graph.drop_unread_initializers()
        kinds = {type(v.const_value).__name__ for v in graph.initializers}
        assert ("LazyTensor" in kinds) == (result is not eager)
        qgraph.save(graph, tmp_path / "m.onnx", external=True)
        files.append(((tmp_path / "m.onnx").read_bytes(), (tmp_path / "m.onnx.data").read_bytes()))
    assert files[0] == files[1]


@each_form
def test_inside_a_subgraph(name):
    result = results(CODES)[name]
    proto = model(
        "g (float[3, 64] x, bool c) => (float[3, 48] y) { y = If (c) <"
        " then_branch = a () => (float[3, 48] p) { [layer] p = MatMul (x, w) },"
        " else_branch = b () => (float[3, 48] q) { n = Neg (x) q = MatMul (n, w) }> }",
        {"w": np.zeros(SHAPE, np.float32)},
    )
    graph = onnx_io.load(proto)
    for node in [each for each in graph.walk() if each.op_type == "MatMul"]:
        value = BY_NAME[name](graph, node, result)
        assert not isinstance(value, Reject)
        put(graph, node, value)
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    want = x.astype(np.float64) @ simulated(result)
    for condition, sign in ((True, 1), (False, -1)):
        feeds = {"x": x, "c": np.array(condition)}
        have = run_reference(onnx_io.to_proto(graph), feeds)["y"]
        np.testing.assert_allclose(have, sign * want, rtol=0, atol=1e-5 * np.abs(want).max())


@each_form
def test_a_weight_of_another_type_is_refused(name):
    proto = model(
        "g (double[M, 64] x) => (double[M, 48] y) { y = MatMul (x, w) }", {"w": np.zeros(SHAPE)}
    )
    assert "double" in refusal(BY_NAME[name], results(CODES)[name], proto)


@each_form
def test_what_is_no_matmul_is_refused(name):
    proto = model(
        "g (float[M, 64] x) => (float[M, 48] y) { y = Gemm (x, w) }",
        {"w": np.zeros(SHAPE, np.float32)},
    )
    graph = onnx_io.load(proto)
    [node] = graph.nodes("Gemm")
    outcome = BY_NAME[name](graph, node, results(CODES)[name])
    assert isinstance(outcome, Reject) and "linear_to_matmul" in outcome.reason
