"""Compiling for engines of which one has operators of its own: the fastest model is kept."""

from dataclasses import replace

import numpy as np
import pytest
from harness import model
from llamas import write_decoder

import qgraph
from models.zoo.llama import Config
from qgraph import compiler, engine_choice, onnx_io
from qgraph.flow import own_passes
from qgraph.target import target

CONFIG = Config(layers=2, width=64, heads=4, kv_heads=2, hidden=48, vocabulary=40, context=64)
DATA = [{"input_ids": np.arange(6, dtype=np.int64)[None] + n} for n in range(4)]


@pytest.fixture
def decoder(tmp_path, monkeypatch):
    monkeypatch.setenv("QGRAPH_CACHE", "off")
    write_decoder(tmp_path, kv=True, config=CONFIG)
    return tmp_path / "m.onnx"


@pytest.fixture(params=[True, False], ids=["its own", "the common one"])
def own_wins(request, monkeypatch):
    """Let one of the two models be measured as the fastest."""

    def ordered(candidates, feeds, **options):
        found = real(candidates, feeds, **options)
        label = "its own operators"
        return sorted(found, key=lambda m: (label in str(m.candidate)) != request.param)

    real = engine_choice.fastest
    monkeypatch.setattr(engine_choice, "fastest", ordered)
    return request.param


def test_the_fastest_model_is_the_artifacts(decoder, own_wins, tmp_path):
    artifact = qgraph.compile(decoder, output=tmp_path / "out", precision="fp32", data=DATA)
    kinds = {node.op_type for node in onnx_io.load(tmp_path / "out" / "model.onnx").nodes()}
    assert ("GroupQueryAttention" in kinds) == own_wins == ("Softmax" not in kinds)
    names = [stage.name for stage in artifact.manifest.stages]
    assert ("group_query_attention" in names) == own_wins
    labels = [timing.candidate for timing in artifact.manifest.timings]
    assert "onnxruntime-cpu fp32, its own operators" in labels and "onnxruntime-cpu fp32" in labels
    assert artifact.manifest.accuracy is not None and artifact.manifest.accuracy.passed is not False
    assert [path.name for path in (tmp_path / "out").glob("*.onnx*")] == ["model.onnx"]
    before, after = (
        qgraph.generate(each, [3, 7, 11], tokens=8).ids for each in (decoder, tmp_path / "out")
    )
    assert after == before


def test_a_model_without_anything_to_rewrite_is_written_once(tmp_path, monkeypatch):
    written = []
    real = compiler.own_models
    monkeypatch.setattr(compiler, "own_models", lambda *a: written.append(real(*a)) or written[-1])
    relu = model("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
    qgraph.compile(relu, output=tmp_path / "out", precision="fp32")
    assert written == [{}]


def test_integers_keep_their_kernels():
    assert own_passes("int8", {}, target("cpu")) == {} != own_passes("int4", {}, target("cpu"))
    assert own_passes("fp32", {}, replace(target("cpu"), own={})) == {}
