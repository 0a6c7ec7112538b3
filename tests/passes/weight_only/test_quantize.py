"""The whole pass on a tiny decoder, run in onnxruntime against simulations in float."""

from dataclasses import replace

import numpy as np
import pytest
from fewbits import decoder, logits, quantized, relative, windows
from folds import normal
from harness import model, run_reference
from llamas import TINY, random_weights

from models.zoo.llama_onnx import build
from qgraph import onnx_io
from qgraph.errors import DataError, UsageError
from qgraph.facts import QuantizedWeight
from qgraph.graph import Graph
from qgraph.passes.weight_only import sequential, write
from qgraph.pipeline import Reject


@pytest.mark.parametrize(
    "options",
    [
        {"scaling": False},
        {"scaling": True},
        {"method": "rtn", "scaling": False},
        {"method": "clipped", "scaling": True, "symmetric": True},
        {"method": "hqq"},
        {"bits": 8, "group": 0},
        {"bits": 3, "group": 32, "symmetric": True},
        {"bits": 2, "sweeps": 1, "refit": True},
        {"head": True},
        {"skip_worse": 3},
    ],
    ids=str,
)
def test_the_packed_model_computes_what_the_simulation_does(captured, options):
    """The weights of the simulation are unscaled: so folding scales changed nothing either."""
    graph = decoder()
    report = quantized(graph, accuracy_level=0, **options)
    assert report.changed == 7 * TINY.layers + ("head" in options)
    simulated = decoder()
    for weight, solution in captured:
        value = simulated.main.initializers[weight]
        value.const_value = simulated.constant("simulated", solution.effective()).const_value
    (feeds,) = windows(1, seed=9)
    got, want = logits(graph, feeds), logits(simulated, feeds)
    assert relative(got, want) < 1e-3
    exact = logits(decoder(), feeds)
    assert 1e-4 < relative(got, exact) < (0.9 if options.get("bits") == 2 else 0.4)


@pytest.mark.parametrize(
    ("name", "level", "written"), [("cpu", None, 4), ("cpu", 0, None), ("cuda", None, None)]
)
def test_the_target_says_what_products_compute_in(name, level, written):
    graph = decoder()
    quantized(graph, data=[], name=name, method="rtn", accuracy_level=level)
    products = [node for node in graph.nodes() if node.op_type == "MatMulNBits"]
    assert {graph.attribute(node, "accuracy_level") for node in products} == {written}
    if written:
        (feeds,) = windows(1, seed=9)
        plain = decoder()
        quantized(plain, data=[], name=name, method="rtn", accuracy_level=0)
        assert 1e-4 < relative(logits(graph, feeds), logits(plain, feeds)) < 3e-2


@pytest.mark.parametrize("method", ["gptq", "clipped"])
def test_scales_are_folded_into_norms_and_products(method):
    graph = decoder()
    before = {op: sum(n.op_type == op for n in graph.nodes()) for op in ("Mul", "RMSNormalization")}
    quantized(graph, method=method)
    after = {op: sum(n.op_type == op for n in graph.nodes()) for op in before}
    assert after == before, "a Mul was added though every scale has a place"


def test_where_the_cache_shows_a_product_its_scale_gets_a_mul():
    plain = decoder(kv=True)
    muls = sum(n.op_type == "Mul" for n in plain.nodes())
    graph = decoder(kv=True)
    shape = (1, TINY.kv_heads, 0, TINY.head_size)
    past = {
        f"past_key_values.{n}.{kind}": np.zeros(shape, np.float32)
        for n in range(TINY.layers)
        for kind in ("key", "value")
    }
    quantized(graph, [w | past for w in windows()])
    # The output projections' inputs; all else folds.
    assert 0 < sum(n.op_type == "Mul" for n in graph.nodes()) - muls <= TINY.layers
    (feeds,) = windows(1, seed=9)
    for name in ("present.0.value", "present.1.key", "logits"):
        got, want = logits(graph, feeds | past, name), logits(plain, feeds | past, name)
        assert relative(got, want) < 0.4


def test_later_layers_see_quantized_earlier_ones():
    """With GPTQ in order a layer makes up for what those before it did."""
    (feeds,) = windows(1, seed=9)
    exact = logits(decoder(), feeds)
    errors = {}
    for method in ("rtn", "gptq"):
        graph = decoder()
        quantized(graph, windows(40), method=method, scaling=False, bits=3)
        errors[method] = np.square(logits(graph, feeds) - exact).sum()
    assert errors["gptq"] < 0.7 * errors["rtn"]


@pytest.mark.parametrize("method", ["nf4", "fp4", "squeeze", "llm-int8"])
def test_other_forms(method):
    graph = decoder()
    report = quantized(graph, method=method, threshold=2.0)
    assert report.changed == 7 * TINY.layers
    (feeds,) = windows(1, seed=9)
    assert 1e-4 < relative(logits(graph, feeds), logits(decoder(), feeds)) < 0.4


def test_the_form_of_other_targets_is_dequantize_linear():
    graph = decoder()
    quantized(graph, name="tensorrt", group=64)
    kinds = {n.op_type for n in graph.nodes()}
    assert "DequantizeLinear" in kinds and "MatMulNBits" not in kinds
    for node in graph.nodes("DequantizeLinear"):
        assert (graph.array(node.inputs[1]) > 0).all() and len(node.inputs) == 2
    (feeds,) = windows(1, seed=9)
    assert relative(logits(graph, feeds), logits(decoder(), feeds)) < 0.4


def test_where_the_target_wants_whole_groups_shorter_ones_are_taken_or_none():
    config = replace(TINY, layers=1, width=192, hidden=160)
    graph = Graph(build(config, random_weights(config)))
    original = Graph(build(config, random_weights(config)))
    report = quantized(graph, name="tensorrt", group=128)
    assert report.changed == 6
    assert sum("groups of 64: the target wants whole ones" in line for line in report.details) == 6
    reason = "its 160 rows do not divide into whole groups of 128, as the target wants them"
    assert any(each.reason == reason for each in report.refused)
    for node in graph.nodes("DequantizeLinear"):
        (rows, _), (blocks, _) = (graph.array(v).shape for v in node.inputs)
        assert rows == blocks * graph.attribute(node, "block_size") == 192
    (feeds,) = windows(1, seed=9)
    assert relative(logits(graph, feeds), logits(original, feeds)) < 0.4


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cpu", {"group": 48}, ["groups of 48", "use 0, 16, 32, 64, 128, 256"]),
        ("tensorrt", {"group": 32}, ["groups of 32", "64, 128"]),
        ("tensorrt", {"bits": 3, "group": 64}, ["3-bit", "use 4"]),
        ("tensorrt", {"symmetric": False, "group": 64}, ["symmetric"]),
        ("tensorrt", {"method": "nf4"}, ["nf4"]),
        ("tensorrt", {"skip_worse": 1, "group": 64}, ["no 8-bit weights", "skip_worse"]),
        ("edge-tpu", {}, ["no weight-only"]),
    ],
)
def test_what_the_target_cannot_run_is_refused(name, options, words):
    with pytest.raises(UsageError) as caught:
        quantized(decoder(), name=name, **options)
    for word in words:
        assert word in str(caught.value)


def test_without_data_gptq_becomes_something_that_needs_none():
    graph = decoder()
    report = quantized(graph, data=())
    assert report.warnings == ["gptq needs data: did clipped instead; pass --data"]
    assert {layer["method"] for layer in report.layers} == {"clipped"}


def test_every_layer_is_reported():
    report = quantized(decoder(), skip_worse=2)
    assert len(report.layers) == 7 * TINY.layers
    eight = [layer for layer in report.layers if layer["type"] == "uint8"]
    assert len(eight) == 2 and all("uint4 would err" in layer["note"] for layer in eight)
    for layer in report.layers:
        assert layer["bits"] == pytest.approx(
            int(layer["type"][-1]) + (32 + int(layer["type"][-1])) / 16
        )
        assert 0 < layer["error"] < layer["error_before"] < 0.1


def test_the_share_that_stays_in_float_is_reported():
    notes = quantized(decoder()).notes
    head = 4 * TINY.width * TINY.vocabulary
    few = sum(
        rows * columns * (4 + 36 / 16) / 8
        for rows, columns in [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    )
    assert len(notes) == 1 and notes[0].startswith(f"{head / (head + few * TINY.layers):.0%} of")
    assert quantized(decoder(), head=True).notes == []


def test_tied_weights_are_quantized_once():
    text = """g (float[n,32] x) => (float[n,32] y) {
        a = MatMul (x, w)
        b = Tanh (a)
        c = MatMul (b, w)
        y = Exp (c) }"""
    graph = onnx_io.load(model(text, {"w": normal(1, 32, 32)}))
    graph.name_nodes()
    quantized(graph, [{"x": normal(n, 8, 32)} for n in range(4)])
    products = [n for n in graph.walk() if n.op_type == "MatMulNBits"]
    assert len(products) == 2 and products[0].inputs[1] is products[1].inputs[1]


def test_a_head_that_shares_the_embedding_is_quantized_beside_it():
    text = """g (int64[1,n] ids) => (float[1,n,50] y) {
        x = Gather (table, ids)
        t = Tanh (x)
        w = Transpose <perm = [1, 0]> (table)
        y = MatMul (t, w) }"""
    arrays = {"table": normal(1, 50, 32)}
    data = [{"ids": np.random.default_rng(n).integers(0, 50, (1, 9))} for n in range(4)]
    graph = onnx_io.load(model(text, arrays))
    graph.name_nodes()
    assert quantized(graph, data, head=True).changed == 1
    assert any(n.op_type == "MatMulNBits" for n in graph.walk())
    feeds = {"ids": np.arange(9)[None]}
    got, want = (
        run_reference(p, feeds)["y"] for p in (onnx_io.to_proto(graph), model(text, arrays))
    )
    assert 1e-3 < relative(got, want) < 0.3


def test_experts_and_convolutions_are_quantized():
    text = """g (float[2,n,32] x, float[1,32,h,k] z) => (float[2,n,32] y, float[1,16,h,k] u) {
        a = MatMul (x, experts)
        y = Tanh (a)
        c = Conv (z, conv)
        u = Tanh (c) }"""
    arrays = {"experts": normal(1, 2, 32, 32) / 6, "conv": normal(2, 16, 32, 1, 1) / 6}
    graph = onnx_io.load(model(text, arrays))
    graph.name_nodes()
    data = [{"x": normal(n, 2, 9, 32), "z": normal(n + 50, 1, 32, 3, 5)} for n in range(8)]
    report = quantized(graph, data)
    assert report.changed == 2
    feeds = {"x": normal(99, 2, 9, 32), "z": normal(98, 1, 32, 3, 5)}
    got = run_reference(onnx_io.to_proto(graph), feeds)
    want = run_reference(model(text, arrays), feeds)
    for name in ("y", "u"):
        assert 1e-3 < relative(got[name], want[name]) < 0.3


@pytest.mark.parametrize("kept", ["attn.v", "attn.o", "mlp.up", "mlp.gate", "layers"])
def test_a_layer_that_no_form_takes_still_fits_what_was_scaled(monkeypatch, kept):
    """Its input or its columns were scaled, for its own sake or for others'."""
    original = write.form

    def choosy(name):
        def form(graph, node, weight, **options):
            if kept in (node.name or ""):
                return Reject("not this one")
            return original(name)(graph, node, weight, **options)

        return form

    whole = decoder()
    quantized(whole, accuracy_level=0)
    monkeypatch.setattr(write, "form", choosy)
    graph = decoder()
    report = quantized(graph, accuracy_level=0)
    assert any(refusal.reason == "not this one" for refusal in report.refused)
    (feeds,) = windows(1, seed=9)
    # The same weights, in float or packed.
    assert relative(logits(graph, feeds), logits(whole, feeds)) < 1e-3


def test_inputs_that_are_not_finite_are_named():
    data = [{"x": np.full((4, 32), np.nan, np.float32)}]
    text = """g (float[n,32] x) => (float[n,32] y) {
        b = Tanh (x)
        a = MatMul (b, w)
        y = Exp (a) }"""
    graph = onnx_io.load(model(text, {"w": normal(1, 32, 32)}))
    with pytest.raises(DataError, match="'b' NaN or infinite"):
        quantized(graph, data)


def test_the_codes_on_the_graph_are_those_of_the_solutions(captured):
    graph = decoder()
    quantized(graph, name="tensorrt", group=64, scaling=False)
    for weight, solution in captured:
        assert isinstance(solution.weight, QuantizedWeight)
        stored = next(v for name, v in graph.main.initializers.items() if name == f"{weight}_codes")
        np.testing.assert_array_equal(
            graph.array(stored).astype(int), solution.weight.codes.astype(int)
        )


class StopHereError(Exception):
    pass


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    from qgraph.data import open_data

    monkeypatch.setenv("QGRAPH_CACHE", str(tmp_path / "cache"))
    ids = np.concatenate([w["input_ids"] for w in windows()])

    def run(graph, **options):
        data = open_data({"input_ids": ids}, graph.signature())
        return quantized(graph, data, **options)

    (feeds,) = windows(1, seed=9)
    whole = decoder()
    run(whole)
    calls = []
    original = sequential.solve_group

    def stopping(*args):
        if len(calls) == 5:
            raise StopHereError
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(sequential, "solve_group", stopping)
    with pytest.raises(StopHereError):
        run(decoder())
    calls.clear()
    with pytest.raises(StopHereError):
        # Groups of other layers are other groups.
        run(decoder(), min_elements=600)
    calls.clear()
    resumed = decoder()
    report = run(resumed)
    # Three groups are left of the eight, seven layers were in the five that were done.
    assert len(calls) == 3 and report.notes[0] == "10 layers were done by an interrupted run"
    np.testing.assert_array_equal(logits(resumed, feeds), logits(whole, feeds))
    # What is left is of the run with other layers, which did not finish.
    assert len(list((tmp_path / "cache").glob("weights-*"))) == 1
