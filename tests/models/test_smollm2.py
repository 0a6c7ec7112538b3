"""The decoder zoo on tiny random decoders; nothing is fetched."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from gguf import GGMLQuantizationType
from llamas import TINY, TOKENS, forward, random_weights, write_gguf
from tokenizers import Tokenizer

from models.zoo import smollm2
from models.zoo.gguf_file import GgufFile
from models.zoo.llama import shapes
from models.zoo.llama_onnx import build
from models.zoo.offgrid import off_grid, torch_normal
from qgraph import onnx_io
from qgraph.errors import ModelError
from qgraph.graph import Graph

IDS = np.random.default_rng(5).integers(0, TINY.vocabulary, (3, 9))
SIZES = {
    "grouped": TINY,
    "as many keys as queries": replace(TINY, kv_heads=4),
    "one key": replace(TINY, kv_heads=1, layers=1, rope_base=500.0),
}


def opened(config, weights, *, kv=False):
    proto = onnx_io.to_proto(Graph(build(config, weights, kv=kv)))
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options)


def logits(config, weights, ids):
    return opened(config, weights).run(["logits"], {"input_ids": ids})[0]


@pytest.mark.parametrize("config", SIZES.values(), ids=SIZES)
def test_graph_computes_what_the_naive_forward_pass_does(config):
    weights = random_weights(config)
    expected = np.stack([forward(config, weights, row) for row in IDS])
    assert expected.std() > 0.3
    np.testing.assert_allclose(logits(config, weights, IDS), expected, rtol=1e-4, atol=1e-5)


def test_with_the_cache_any_cut_gives_the_same_logits():
    weights = random_weights()
    expected = logits(TINY, weights, IDS)
    session = opened(TINY, weights, kv=True)
    inputs = {i.name: i.shape for i in session.get_inputs()}
    outputs = {o.name: o.shape for o in session.get_outputs()}
    assert (next(iter(inputs)), next(iter(outputs))) == ("input_ids", "logits")
    for name, shape in inputs.items():
        if name != "input_ids":
            assert shape == ["batch", 2, "past", 8]
            assert outputs[name.replace("past_key_values", "present")] == ["batch", 2, "total", 8]
    past = {name: np.zeros((3, 2, 0, 8), np.float32) for name in inputs if name != "input_ids"}
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        results = session.run(None, {"input_ids": IDS[:, start:stop], **past})
        found = dict(zip(outputs, results, strict=True))
        np.testing.assert_allclose(found["logits"], expected[:, start:stop], rtol=1e-4, atol=1e-5)
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        assert all(array.shape[2] == stop for array in past.values())


def test_off_grid_weights_differ_and_compute_the_same():
    weights = random_weights()
    spread = off_grid(TINY, weights)
    np.testing.assert_allclose(
        logits(TINY, spread, IDS), logits(TINY, weights, IDS), rtol=1e-4, atol=1e-5
    )
    for name, array in spread.items():
        if "norm" in name:
            assert (array == 1).all()
        elif name == "embed":
            assert array is weights[name]
        else:
            assert np.abs(array / weights[name] - 1).max() > 0.3, name
    assert all("norm" not in name or (a != 1).any() for name, a in weights.items())
    again = off_grid(TINY, weights)
    assert all((again[name] == spread[name]).all() for name in spread)
    other = off_grid(TINY, weights, seed=1)
    assert (other["layers.0.mlp.up"] != spread["layers.0.mlp.up"]).any()


def test_factors_are_those_of_torch():
    # torch 2.13: g = torch.Generator().manual_seed(0); torch.randn(192, generator=g)[:4], [-2:],
    # then torch.randn(1536, generator=g)[:3]
    rng = np.random.RandomState(0)
    first, second = torch_normal(rng, 192), torch_normal(rng, 1536)
    np.testing.assert_allclose(
        first[:4], [-1.12583983, -1.1523602, -0.250578582, -0.433878809], rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(first[-2:], [-1.18936396, -1.19594944], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        second[:3], [-0.559630096, 0.533471823, 0.406886607], rtol=0, atol=1e-6
    )
    with pytest.raises(ValueError, match="multiple of 16"):
        torch_normal(rng, 20)


def test_weights_of_another_shape_are_refused():
    weights = random_weights()
    with pytest.raises(ValueError, match=r"layers.1.attn.k.* \(32, 16\)"):
        build(TINY, weights | {"layers.1.attn.k": weights["layers.1.attn.q"]})
    with pytest.raises(ValueError, match="'norm' .* missing"):
        build(TINY, {name: array for name, array in weights.items() if name != "norm"})


def test_gguf_gives_sizes_and_weights_back(tmp_path):
    weights = random_weights()
    file = GgufFile(write_gguf(tmp_path / "m.gguf", TINY, weights))
    assert file.config() == replace(TINY, epsilon=file.config().epsilon)
    assert file.config().epsilon == pytest.approx(TINY.epsilon)
    found = file.weights()
    assert {name: array.shape for name, array in found.items()} == shapes(TINY)
    for name, array in found.items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)


def test_quantized_gguf_with_a_shared_head(tmp_path):
    weights = random_weights()
    kind = GGMLQuantizationType.Q8_0
    file = GgufFile(write_gguf(tmp_path / "m.gguf", TINY, weights, kind=kind, head=False))
    found = file.weights()
    np.testing.assert_array_equal(found["head"], found["embed"].T)
    for name, array in found.items():
        wanted = weights["embed"].T if name == "head" else weights[name]
        step = np.abs(wanted).max() / 127 if wanted.ndim == 2 else 0
        np.testing.assert_allclose(array, wanted, rtol=0, atol=step, err_msg=name)


def test_what_is_no_llama_is_refused(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", TINY, random_weights(), architecture="qwen2")
    with pytest.raises(ModelError, match="holds 'qwen2'"):
        GgufFile(path)
    (tmp_path / "n.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="can't be read as GGUF"):
        GgufFile(tmp_path / "n.gguf")


@pytest.fixture
def tiny_zoo(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf", TINY, random_weights())
    monkeypatch.setenv("MODELS_ROOT", str(tmp_path / "root"))
    monkeypatch.setattr(smollm2, "fetch", lambda: path)
    return tmp_path / "root" / "onnx"


@pytest.mark.parametrize("options", [[], ["--kv"], ["--offgrid"], ["--kv", "--offgrid"]], ids=str)
def test_command_writes_model_and_tokenizer(tiny_zoo, capsys, options):
    assert smollm2.main(options) == 0
    paths = capsys.readouterr().out.split()
    assert sorted(paths) == sorted(str(path) for path in tiny_zoo.iterdir())
    name = "smollm2_135m_" + ("offgrid" if "--offgrid" in options else "instruct")
    model = onnx.load(tiny_zoo / f"{name}{'_kv' if '--kv' in options else ''}.onnx")
    assert ({p.key: p.value for p in model.metadata_props})["context_length"] == "64"
    assert len(model.graph.input) == (5 if "--kv" in options else 1)
    config = json.loads((tiny_zoo / "tokenizer_config.json").read_text())
    assert config["eos_token"] == TOKENS[0] and config["bos_token"] == TOKENS[1]


def test_tokenizer_merges_splits_digits_and_knows_control_tokens(tiny_zoo):
    assert smollm2.main([]) == 0
    tokenizer = Tokenizer.from_file(str(tiny_zoo / "tokenizer.json"))
    text = "<|im_start|>ab ab c 12  1<|endoftext|>"
    wanted = ["<|im_start|>", "ab", "Ġab", "Ġc", "Ġ", "1", "2", "Ġ", "Ġ", "1", "<|endoftext|>"]
    encoded = tokenizer.encode(text)
    assert encoded.tokens == wanted
    assert encoded.ids == [TOKENS.index(token) for token in wanted]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert tokenizer.decode(encoded.ids) == "ab ab c 12  1"


def test_failures_are_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    path = write_gguf(tmp_path / "m.gguf", TINY, random_weights(), pre="other")
    monkeypatch.setattr(smollm2, "fetch", lambda: path)
    assert smollm2.main(["-o", str(tmp_path / "out" / "m.onnx")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and "other" in shown
    assert not (tmp_path / "out").exists()
