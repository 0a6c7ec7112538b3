"""generate on tiny decoders and their artifacts."""

import json

import numpy as np
import onnx
import pytest
from llamas import TINY, greedy, write_decoder

PROMPT, PROMPT_IDS = "abc d", [36, 4, 28, 5]


@pytest.fixture
def decoder(tmp_path):
    write_decoder(tmp_path, kv=True)
    return tmp_path / "m.onnx"


def test_text_goes_to_stdout_and_times_to_stderr(invoke, invoke_json, decoder):
    result = invoke("generate", decoder, "--prompt", PROMPT, "--tokens", "6")
    assert result.exit_code == 0, result.stderr
    found = invoke_json("generate", decoder, "--prompt", PROMPT, "--tokens", "6")
    assert result.stdout == found["text"] + "\n"
    assert "prompt: 4 tokens at" in result.stderr and "text: 6 tokens at" in result.stderr
    assert "stopped by the number of tokens" in result.stderr
    quiet = invoke("-q", "generate", decoder, "--prompt", PROMPT, "--tokens", "6")
    assert (quiet.stdout, quiet.stderr) == (result.stdout, "")


def test_json_has_everything(invoke_json, tmp_path):
    weights = write_decoder(tmp_path, kv=False)
    found = invoke_json("generate", tmp_path / "m.onnx", "--prompt", PROMPT, "--tokens", "5")
    assert found["ids"] == greedy(TINY, weights, PROMPT_IDS, 5)
    assert found["prompt_ids"] == PROMPT_IDS and found["stopped"] == "number of tokens"
    assert found["decode_tokens_per_s"] > 0 and "no KV cache" in found["notes"][0]


def test_an_artifact_carries_its_tokenizer(invoke, invoke_json, decoder, tmp_path):
    ids = np.random.default_rng(0).integers(0, TINY.vocabulary, (8, 12))
    np.savez(tmp_path / "d.npz", input_ids=ids)
    out = tmp_path / "out"
    result = invoke("compile", decoder, "--data", tmp_path / "d.npz", "-o", out,
                    "--set", "calibrate.observer=minmax")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes()
        assert name in json.loads((out / "manifest.json").read_text())["files"]
    found = invoke_json("generate", out, "--prompt", PROMPT, "--tokens", "4")
    assert len(found["ids"]) == 4 and found["notes"] == []


def test_models_that_take_no_tokens_get_no_tokenizer(invoke, convnet, samples, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    result = invoke("compile", convnet, "--precision", "fp32", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_control_characters_are_shown_and_not_obeyed(invoke, decoder, tmp_path):
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    # "ě" is how byte-level BPE spells the escape character.
    escapes = {("ě" + "Ġ" * index): index for index in range(2, len(vocabulary))}
    tokenizer["model"]["vocab"] = {k: v for k, v in vocabulary.items() if v < 2} | escapes
    tokenizer["model"]["merges"] = []
    (tmp_path / "t.json").write_text(json.dumps(tokenizer))
    prompt = "<|im_start|>"
    result = invoke("generate", decoder, "--prompt", prompt, "--tokens", "3",
                    "--tokenizer", tmp_path / "t.json")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "\\x1b" in result.stdout and "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "Missing option '--prompt'"),
        (["--prompt", "abc", "--tokens", "0"], 2, "--tokens"),
        (["--prompt", "abc", "--temperature", "-1"], 2, "--temperature"),
        (["--prompt", ""], 1, "the prompt has no tokens"),
        (["--prompt", "abc", "--engine", "onnxruntime-cpuu"], 2, "did you mean"),
        (["--prompt", "abc", "--tokenizer", "none.json"], 2, "none.json: no such file"),
    ],
    ids=str,
)
def test_errors_are_one_line(invoke, decoder, options, code, words):
    result = invoke("generate", decoder, *options)
    assert result.exit_code == code and result.stdout == ""
    assert result.stderr.count("\n") == 1 and words in result.stderr


def test_no_decoder(invoke, convnet, tmp_path):
    write_decoder(tmp_path, kv=False, name="other.onnx")
    result = invoke("generate", convnet, "--prompt", "abc")
    assert result.exit_code == 1
    assert "is no decoder" in result.stderr and "image: float32" in result.stderr
    assert onnx.load(convnet).graph.input[0].name == "image"
