"""A decoder compiled for an engine with operators of its own: types, caches, tokens."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from harness import assert_close, interface, run_reference
from llamas import random_weights, write_decoder

import qgraph
from models.zoo.llama import Config
from models.zoo.llama_onnx import build
from qgraph import onnx_io
from qgraph.context import Context
from qgraph.flow import exact_passes, quantizing_passes
from qgraph.kv_cache import find_caches
from qgraph.passes.contrib import CONTRIB
from qgraph.passes.contrib.lowering import lower, lowering
from qgraph.pipeline import Pipeline
from qgraph.registry import by_name
from qgraph.target import target
from qgraph.targets.contrib import CONTRIBUTED, NOTHING

CONFIG = Config(layers=2, width=64, heads=4, kv_heads=2, hidden=48, vocabulary=40, context=64)


def prepared(kv):
    proto = ir.to_proto(build(CONFIG, random_weights(CONFIG), kv=kv))
    graph = onnx_io.load(proto)
    Pipeline(exact_passes({})).run(graph)
    return proto, graph


def feeds(kv, new=3, past=5):
    rng = np.random.default_rng(1)
    found = {"input_ids": rng.integers(0, CONFIG.vocabulary, (1, new))}
    for layer in range(CONFIG.layers if kv else 0):
        for part in ("key", "value"):
            array = rng.standard_normal((1, 2, past, 16)).astype(np.float32)
            found[f"past_key_values.{layer}.{part}"] = array
    return found


def test_every_operator_of_an_engine_has_a_pass_that_writes_it() -> None:
    written = {each.writes for each in by_name(CONTRIB).values()}
    for engine in CONTRIBUTED.values():
        assert set().union(*engine.operators.values()) <= written
        assert set(engine.options) <= set(by_name(CONTRIB))


def test_an_engine_without_any_is_given_the_graph_as_it_is() -> None:
    assert lowering(NOTHING) == []
    assert lowering(CONTRIBUTED["onnxruntime-cuda"], "fp8") == []


@pytest.mark.parametrize("kv", [False, True])
def test_a_decoder_for_the_cpu(kv: bool) -> None:
    proto, graph = prepared(kv)
    lower(graph, CONTRIBUTED["onnxruntime-cpu"])
    out = onnx_io.to_proto(graph)
    assert interface(out) == interface(proto)
    assert_close(run_reference(proto, feeds(kv)), run_reference(out, feeds(kv)))
    count = Counter(node.op_type for node in out.graph.node)
    assert count["GroupQueryAttention"] == 2 and count["SkipSimplifiedLayerNormalization"] == 4
    # What all layers have in common is there once: lengths, and nothing of the mask.
    assert count["Expand"] == 1 and count["Cast"] == 2 and not count["Where"]


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_a_decoder_for_cuda_computes_its_attention_in_fp16(precision: str) -> None:
    proto, graph = prepared(kv=True)
    options = {"weight_only": {"min_elements": 1, "group": 16}}
    context = Context(target=target("cuda"), data=[feeds(True, past=0)])
    passes = quantizing_passes(precision, options, target("cuda"))
    Pipeline(passes, given=graph.facts.present()).run(graph, context)
    out = onnx_io.to_proto(graph)
    onnx.checker.check_model(out)
    assert interface(out) == interface(proto)
    assert graph.facts.plan is not None
    ours = [n for n in graph.nodes() if n.domain == "com.microsoft"]
    for node in ours:
        assert graph.facts.plan.nodes[node.name or ""][0] != "float"
        assert node.outputs[0].dtype == ir.DataType.FLOAT16
    kinds = {node.op_type for node in ours}
    assert {"GroupQueryAttention", "SkipSimplifiedLayerNormalization"} <= kinds
    assert find_caches(graph) == find_caches(onnx_io.load(proto))
    wanted, got = (run_reference(each, feeds(True)) for each in (proto, out))
    limit = 0.02 if precision == "fp16" else 0.5
    for name, array in wanted.items():
        assert np.abs(got[name] - array).max() < limit * np.abs(array).max(), name


def test_a_compiled_decoder_generates_the_same_tokens(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("QGRAPH_CACHE", "off")
    write_decoder(tmp_path, kv=True, config=CONFIG)
    source, folder = tmp_path / "m.onnx", tmp_path / "out"
    data = [{"input_ids": np.arange(6, dtype=np.int64)[None] + n} for n in range(4)]
    artifact = qgraph.compile(source, output=folder, target="cuda", precision="fp16", data=data)
    assert any(stage.name == "group_query_attention" for stage in artifact.manifest.stages)
    before, after = (
        qgraph.generate(path, [3, 7, 11], tokens=12).ids for path in (source, folder / "model.onnx")
    )
    assert after == before
