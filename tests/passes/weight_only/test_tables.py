"""Embedding tables in few bits, beside the layers, run in onnxruntime against simulations."""

import numpy as np
import pytest
from folds import normal
from harness import model, run_reference
from llamas import TINY, random_weights

from models.zoo.llama_onnx import build
from qgraph import onnx_io
from qgraph.context import Context
from qgraph.errors import UsageError
from qgraph.graph import Graph
from qgraph.passes.linear_to_matmul import LinearToMatMul
from qgraph.passes.weight_only.quantize import WeightOnly
from qgraph.pipeline import Pipeline
from qgraph.target import target

PLAIN = {"min_elements": 1, "group": 16, "method": "rtn", "scaling": False}
TIED = """g (int64[1,n] ids) => (float[1,n,50] y) {
    [embed] x = Gather (table, ids)  t = Tanh (x)
    w = Transpose <perm = [1, 0]> (table)  [head] y = MatMul (t, w)
}"""


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("QGRAPH_CACHE", "off")


def compiled(graph, name="cpu", exclude=(), **options):
    context = Context(target=target(name) if name else None, exclude=exclude)
    return (
        Pipeline([LinearToMatMul(), WeightOnly(**PLAIN | options)]).run(graph, context)[-1].report
    )


def outcome(graph, feeds):
    return next(iter(run_reference(onnx_io.to_proto(graph), feeds).values()))


def tied(width=32):
    return onnx_io.load(model(TIED, {"table": normal(1, 50, width)}))


def node(graph, op):
    (found,) = [n for n in graph.nodes() if n.op_type == op]
    return found


def reasons(report):
    return {each.where: each.reason for each in report.refused}


def simulated(table, bits, group, symmetric):
    """Round to nearest, group by group along the rows."""
    groups = table.reshape(-1, group or table.shape[1]).astype(np.float64)
    half = 1 << (bits - 1)
    if symmetric:
        # The weight of largest magnitude takes the lowest code, whatever its sign.
        peak = groups[np.arange(len(groups)), np.abs(groups).argmax(axis=1)]
        scale = (peak / -half).astype(np.float32)[:, None]
        return (np.clip(np.rint(groups / scale), -half, half - 1) * scale).reshape(table.shape)
    low, high = np.minimum(groups.min(axis=1), 0), np.maximum(groups.max(axis=1), 0)
    scale = ((high - low) / (2 * half - 1)).astype(np.float32)[:, None]
    zero = np.rint(-low[:, None] / scale)
    codes = np.clip(np.rint(groups / scale) + zero, 0, 2 * half - 1)
    return ((codes - zero) * scale).reshape(table.shape)


@pytest.mark.parametrize("name", ["cpu", None])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [16, 0])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_packed_model_computes_what_the_simulation_does(bits, group, symmetric, name):
    weights = random_weights()
    rounded = simulated(weights["embed"], bits, group, symmetric)
    given, wanted = (
        Graph(build(TINY, weights | {"embed": table}))
        for table in (weights["embed"], rounded.astype(np.float32))
    )
    options = {"symmetric": symmetric, "group": group, "clip": "none"}
    report = compiled(given, name, embeddings=True, embedding_bits=bits, **options)
    compiled(wanted, name, **options)
    feeds = {"input_ids": np.arange(TINY.vocabulary)[None]}
    if name is None and bits == 4:
        assert "no Gather of 4-bit codes" in reasons(report)["embed"]
        return
    have, want = outcome(given, feeds), outcome(wanted, feeds)
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_ranges_of_4_bit_tables_are_searched():
    errors = []
    for clip in ("none", "squared"):
        graph = Graph(build(TINY, random_weights()))
        report = compiled(graph, embeddings=True, embedding_bits=4, clip=clip)
        errors.append(report.layers[-1]["error"])
    assert errors[1] < 0.95 * errors[0]


def test_plan_and_report_list_it():
    graph = Graph(build(TINY, random_weights()))
    report = compiled(graph, embeddings=True)
    entry = report.layers[-1]
    assert entry["name"] == "embed" and entry["type"] == "uint8" and entry["method"] == "rtn"
    assert entry["bits"] == 8 + 40 / 16 and 0 < entry["error"] < 1e-4
    assert graph.facts.plan.nodes["embed"][0] == "int8"
    assert report.changed == 7 * TINY.layers + 1
    assert node(graph, "GatherBlockQuantized").name == "embed"
    assert all(v.name != "embed.weight" for v in graph.initializers)


def test_without_the_option_tables_stay():
    graph = Graph(build(TINY, random_weights()))
    assert compiled(graph).changed == 7 * TINY.layers
    assert graph.facts.plan.nodes["embed"] == ("float", "Gather stays in float")


@pytest.mark.parametrize(("bits", "level", "tolerance"), [(4, 0, 1e-5), (8, 4, 2e-2)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_tied_head_of_the_same_bits_shares_its_codes(bits, level, tolerance, symmetric):
    # With 8 bits cpu's head is a MatMulNBits only where activations are rounded to int8.
    graph = tied()
    options = {"bits": bits, "embedding_bits": bits, "symmetric": symmetric}
    options["accuracy_level"] = level
    report = compiled(graph, head=True, embeddings=True, **options)
    assert "the codes are those of head" in report.layers[-1]["note"]
    product, gather = node(graph, "MatMulNBits"), node(graph, "GatherBlockQuantized")
    assert node(graph, "Reshape").inputs[0] is product.inputs[1]
    assert list(gather.inputs[2:]) == list(product.inputs[2:])
    # Codes, scales, the shape, and zero points where there are any.
    assert len(graph.initializers) == (3 if symmetric else 4)
    # Both read one table: row i of the product with the identity's rows is that of the Gather.
    have = outcome(graph, {"ids": np.arange(50)[None]})
    rows = run_reference(onnx_io.to_proto(only_gather(graph)), {"ids": np.arange(50)[None]})
    table = next(iter(rows.values()))[0].astype(np.float64)
    want = np.tanh(table) @ table.T
    np.testing.assert_allclose(have[0], want, rtol=0, atol=tolerance * np.abs(want).max())
    error = np.square(table - normal(1, 50, 32)).sum() / np.square(normal(1, 50, 32)).sum()
    assert report.layers[-1]["error"] == pytest.approx(error, rel=1e-4)


def only_gather(graph):
    gather = node(graph, "GatherBlockQuantized")
    graph.main.outputs[0] = gather.outputs[0]
    return graph


def test_rows_that_no_block_ends_with_are_stored_again_with_the_same_codes():
    graph = tied(width=40)
    options = {"bits": 4, "embedding_bits": 4, "accuracy_level": 0}
    report = compiled(graph, head=True, embeddings=True, **options)
    assert report.changed == 2 and "Reshape" not in {n.op_type for n in graph.nodes()}
    assert all(v.name != "table" for v in graph.initializers)
    have = outcome(graph, {"ids": np.arange(50)[None]})
    table = outcome(only_gather(graph), {"ids": np.arange(50)[None]})[0].astype(np.float64)
    want = np.tanh(table) @ table.T
    np.testing.assert_allclose(have[0], want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("same", [True, False])
def test_a_head_with_a_copy_of_the_table_shares_its_codes(same):
    # As exporters write tied weights, with the Transpose folded.
    text = """g (int64[1,n] ids) => (float[1,n,50] y) {
        [embed] x = Gather (table, ids)  t = Tanh (x)  [head] y = MatMul (t, w)
    }"""
    table = normal(1, 50, 32)
    weight = table.T.copy()
    weight[31, 49] += 0 if same else 1e-3
    graph = onnx_io.load(model(text, {"table": table, "w": weight}))
    compiled(graph, head=True, embeddings=True, embedding_bits=4)
    shared = node(graph, "GatherBlockQuantized").inputs[2] is node(graph, "MatMulNBits").inputs[2]
    assert shared == same
    assert not {v.name for v in graph.initializers} & {"table", "w"}


def test_a_head_in_another_form_has_the_same_codes_of_its_own():
    graph = tied()
    report = compiled(graph, head=True, embeddings=True, bits=8, accuracy_level=0)
    assert "the codes are those of head" in report.layers[-1]["note"]
    assert all(v.name != "table" for v in graph.initializers)
    have = outcome(graph, {"ids": np.arange(50)[None]})
    table = outcome(only_gather(graph), {"ids": np.arange(50)[None]})[0].astype(np.float64)
    want = np.tanh(table) @ table.T
    np.testing.assert_allclose(have[0], want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_a_tied_head_of_other_bits_has_codes_of_its_own():
    graph = tied()
    report = compiled(graph, head=True, embeddings=True)
    assert [(each["name"], each["type"]) for each in report.layers] == [
        ("head", "uint4"),
        ("embed", "uint8"),
    ]
    assert all(v.name != "table" for v in graph.initializers)
    assert not any("stays in float beside it" in line for line in report.details)


def test_a_table_that_a_float_head_needs_stays_float():
    graph = tied()
    report = compiled(graph, embeddings=True)
    assert report.changed == 0
    reason = reasons(report)["embed"]
    assert "also read by MatMul head" in reason and "weight_only.head=true" in reason
    assert graph.facts.plan.nodes["embed"] == ("float", reason)
    assert (
        outcome(graph, {"ids": np.arange(9)[None]}).tolist()
        == outcome(tied(), {"ids": np.arange(9)[None]}).tolist()
    )


def test_a_float_table_beside_a_quantized_head_is_noted():
    report = compiled(tied(), head=True)
    assert "head: table stays in float beside it, for embed" in report.details


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exclude": ("embed",)}, "excluded by 'embed'"),
        ({"min_elements": 100_000}, "fewer than 100000 elements"),
    ],
)
def test_tables_that_are_left_alone(options, words):
    graph = Graph(build(TINY, random_weights()))
    assert words in reasons(compiled(graph, embeddings=True, **options))["embed"]
    assert [n.name for n in graph.nodes("Gather")] == ["embed"]


def test_a_table_that_one_gather_needs_in_float_stays_so_for_all():
    text = """g (int64[n] ids) => (float[n,32] y, float[50,n] z) {
        [rows] y = Gather (table, ids)  [columns] z = Gather <axis = 1> (table, ids)
    }"""
    graph = onnx_io.load(model(text, {"table": normal(1, 50, 32)}))
    found = reasons(compiled(graph, embeddings=True))
    assert found["columns"] == "it does not gather rows of a table"
    assert found["rows"] == "another node needs its table in float"


def test_gathers_of_one_table_share_its_codes():
    text = """g (int64[n] ids) => (float[n,32] y, float[n,32] z) {
        [one] y = Gather (table, ids)  i = Neg (ids)  [two] z = Gather (table, i)
    }"""
    graph = onnx_io.load(model(text, {"table": normal(1, 50, 32)}))
    assert compiled(graph, embeddings=True).changed == 1
    one, two = (n for n in graph.nodes() if n.op_type == "GatherBlockQuantized")
    assert one.inputs[0] is two.inputs[0] and one.inputs[2] is two.inputs[2]


def test_a_target_without_such_tables_refuses():
    graph = Graph(build(TINY, random_weights()))
    with pytest.raises(UsageError, match="no tables in few bits"):
        compiled(graph, "tensorrt", embeddings=True, group=64)
