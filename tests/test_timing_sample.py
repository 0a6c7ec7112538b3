"""What engines are timed on."""

import numpy as np
import onnx
import pytest
from harness import model, run_reference
from llamas import TINY, forward, random_weights

import qgraph
from models.zoo.llama_onnx import build
from qgraph import onnx_io
from qgraph.artifact import Artifact
from qgraph.decoder import context_length
from qgraph.graph import Graph
from qgraph.kv_cache import find_caches
from qgraph.runtime.backend import TensorInfo
from qgraph.timing_sample import PAST, TimingSample, of_batch, timing_sample

T = TensorInfo("t", "int64", ("n", "length"))
IDS = np.random.default_rng(0).integers(0, TINY.vocabulary, (1, 9))


def decoder(folder, *, kv=True):
    weights = random_weights()
    onnx_io.save(Graph(build(TINY, weights, kv=kv)), folder / "m.onnx")
    return folder / "m.onnx", weights


def timed(path, sample, context="its own"):
    graph = onnx_io.load(path)
    positions = context_length(graph) if context == "its own" else context
    return timing_sample(path, sample, find_caches(graph), positions, guessed=False)


def with_empty_caches(ids):
    names = [f"past_key_values.{n}.{part}" for n in (0, 1) for part in ("key", "value")]
    return {"input_ids": ids, **{name: np.zeros((1, 2, 0, 8), np.float32) for name in names}}


def test_a_decoder_is_timed_on_the_step_behind_tokens_of_the_sample(tmp_path):
    path, weights = decoder(tmp_path)
    found = timed(path, with_empty_caches(IDS))
    past = TINY.context - 1  # no more fit
    assert found.what == f"one token behind {past}"
    assert found.feeds["input_ids"].shape == (1, 1)
    assert found.feeds["past_key_values.1.value"].shape == (1, 2, past, 8)
    tokens = np.resize(IDS, past + 1)
    logits = run_reference(onnx.load(path), found.feeds)["logits"]
    np.testing.assert_allclose(logits[0, -1], forward(TINY, weights, tokens)[-1], rtol=1e-3)


@pytest.mark.parametrize(("context", "past"), [(5, 4), (1, 0)])
def test_no_more_tokens_than_the_context_has(tmp_path, context, past):
    path, _ = decoder(tmp_path)
    found = timed(path, with_empty_caches(IDS), context)
    assert found.what == f"one token behind {past}"
    assert found.feeds["past_key_values.0.key"].shape == (1, 2, past, 8)


CACHED = """g (int64[1,{length}] ids, float[1,2,p,4] past{more}) => (float[1,n,4] logits, float[1,2,q,4] present) {{
    e = Gather<axis=0>(table, ids)  two = Unsqueeze(e, one)  new = Expand(two, heads)
    present = Concat<axis=2>(past, new)
    mean = ReduceMean<keepdims=1>(present, axes)  m = Squeeze(mean, one)  logits = Add(e, {added})
}}"""


def cached(folder, length="n", more="", added="m"):
    arrays = {
        "table": np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32),
        "one": np.int64([1]),
        "heads": np.int64([1, 2, 1, 1]),
        "axes": np.int64([1, 2]),
    }
    text = CACHED.format(length=length, more=more, added=added)
    onnx.save(model(text, arrays, opset=21), folder / "m.onnx")
    past = np.zeros((1, 2, 0, 4), np.float32)
    return folder / "m.onnx", {"ids": np.int64([[1, 5, 2]]), "past": past}


def test_a_model_that_does_not_tell_its_context_is_timed_behind_the_usual_length(tmp_path):
    path, sample = cached(tmp_path)
    found = timed(path, sample)
    assert found.what == f"one token behind {PAST}"
    assert found.feeds["past"].shape == (1, 2, PAST, 4) and found.feeds["ids"].tolist() == [[2]]


def test_what_takes_no_single_token_is_timed_on_the_sample_and_it_is_said_why(tmp_path):
    path, sample = cached(tmp_path, length="3")
    found = timed(path, sample)
    assert (
        found.feeds is sample
        and found.what == "one sample (takes 3 tokens in a run, there are 128)"
    )
    path, sample = cached(tmp_path, more=", float[1,1,4] encoded", added="encoded")
    sample["encoded"] = np.zeros((1, 1, 4), np.float32)
    found = timed(path, sample)
    assert found.feeds is sample and found.what.startswith("one sample (is no decoder that")


def test_other_models_are_timed_on_the_sample(tmp_path):
    path, _ = decoder(tmp_path, kv=False)
    sample = {"input_ids": IDS}
    found = timed(path, sample)
    assert found.feeds is sample and found.what == "one sample"


@pytest.mark.parametrize(("kv", "what"), [(True, "one token behind 63"), (False, "one sample")])
def test_the_manifest_says_it(tmp_path, monkeypatch, kv, what):
    monkeypatch.setattr("qgraph.engine_choice.BUDGET_S", 0.1)
    path, _ = decoder(tmp_path, kv=kv)
    qgraph.compile(path, output=tmp_path / "out", precision="fp32", data={"input_ids": IDS})
    manifest = Artifact.load(tmp_path / "out").manifest
    assert manifest.timed == what and manifest.timings[0].p50_ms
    artifact = qgraph.compile(
        path, output=tmp_path / "npu", precision="fp32", target="npu", data={"input_ids": IDS}
    )
    assert artifact.manifest.timed == "" and artifact.manifest.not_timed


def test_a_batch_repeats_the_sample_where_the_batch_is_free(tmp_path):
    path, _ = decoder(tmp_path)
    inputs = onnx_io.load(path).signature()
    sample = TimingSample(with_empty_caches(IDS[:, :1]), "one token")
    found = of_batch(sample, inputs, 3)
    assert found.what == "one token, batch 3"
    assert found.feeds["input_ids"].tolist() == [IDS[0, :1].tolist()] * 3
    assert found.feeds["past_key_values.0.key"].shape == (3, 2, 0, 8)
    assert of_batch(sample, inputs, None) is sample
    texts = of_batch(TimingSample({"t": np.ones((1, 4), np.int64)}, "a text"), [T], 13)
    assert texts.what == "a text, batch 3" and texts.feeds["t"].shape == (3, 4)
    assert of_batch(texts, [T], 2).feeds["t"].shape == (1, 4)
    rows = TimingSample({"x": np.arange(6.0).reshape(2, 3), "w": np.ones(2)}, "two rows")
    free = [TensorInfo("x", "float64", ("n", 3)), TensorInfo("w", "float64", (2,))]
    assert of_batch(rows, free, 3).feeds["x"].tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert of_batch(rows, free, 3).feeds["w"] is rows.feeds["w"]
    for first in (2, None):
        assert of_batch(rows, [TensorInfo("x", "float64", (first, 3))], 3) is rows


def test_compile_times_the_batch_that_it_is_told(tmp_path):
    artifact = qgraph.compile(
        model("g (float[n,4] x) => (float[n,4] y) { y = Exp(x) }"),
        output=tmp_path / "out",
        precision="fp32",
        settings=["weight_only.batch=5"],
    )
    assert artifact.manifest.timed == "one sample, batch 5"
