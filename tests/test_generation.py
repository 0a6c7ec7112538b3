"""Generated text against a naive forward pass, and against toy decoders with every kind of input."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from harness import model
from llamas import TINY, TOKENS, greedy, write_decoder

import qgraph
from qgraph.errors import DataError, EngineError, ModelError, UsageError
from qgraph.generation import WITHOUT_CACHE, WITHOUT_END

PROMPT = "abc d"  # ab, c, a space, d
PROMPT_IDS = [36, 4, 28, 5]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for kv in (True, False):
        made[kv] = tmp_path_factory.mktemp("kv" if kv else "plain")
        weights = write_decoder(made[kv], kv=kv)
    return made, weights


@pytest.fixture(params=[True, False], ids=["kv cache", "no cache"])
def decoder(request, folders):
    return folders[0][request.param] / "m.onnx"


@pytest.fixture
def weights(folders):
    return folders[1]


def configured(decoder, tmp_path, **config):
    """The decoder's tokenizer with another tokenizer_config.json; no special token ends a text."""
    tokenizer = json.loads((decoder.parent / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path / "tokenizer.json"


def test_greedy_text_is_that_of_the_naive_forward_pass(decoder, weights):
    wanted = greedy(TINY, weights, PROMPT_IDS, 12)
    assert 0 not in wanted and len(set(wanted)) > 4
    pieces, notes = [], []
    found = qgraph.generate(decoder, PROMPT, tokens=12, on_text=pieces.append, on_note=notes.append)
    assert found.prompt_ids == PROMPT_IDS
    assert found.ids == wanted and found.stopped == "number of tokens"
    assert "".join(pieces) == found.text and len(pieces) == 12
    assert found.text.startswith(TOKENS[wanted[0]])
    assert notes == found.notes == ([] if decoder.parent.name.startswith("kv") else [WITHOUT_CACHE])
    assert found.engine == "onnxruntime-cpu" and found.steps == 11
    assert found.prefill_tokens_per_s == 4 / found.prefill_s > 0
    assert found.decode_tokens_per_s == 11 / found.decode_s > 0


def test_a_prompt_of_tokens_needs_no_tokenizer(decoder, weights, tmp_path):
    (tmp_path / "m.onnx").write_bytes(decoder.read_bytes())
    found = qgraph.generate(tmp_path / "m.onnx", np.array([2, 3]), tokens=1)
    assert found.ids == greedy(TINY, weights, [2, 3], 1)
    assert found.text == "" and found.decode_tokens_per_s is None
    json.dumps(found.as_json())


def test_a_text_ends_at_the_end_token(decoder, weights):
    text = "dhsf"
    ids = [TOKENS.index(c) for c in text]
    first, end = greedy(TINY, weights, ids, 2)
    assert TOKENS[end] == "<|endoftext|>"
    found = qgraph.generate(decoder, text)
    assert found.ids == [first] and found.stopped == "end of text" and found.steps == 1


@pytest.mark.parametrize("described", [False, True], ids=["text", "description"])
def test_the_end_token_may_be_configured(decoder, weights, tmp_path, described):
    wanted = greedy(TINY, weights, PROMPT_IDS, 5)
    end = next(i for i in range(2, 5) if wanted[i] not in wanted[:i])
    token = TOKENS[wanted[end]]
    tokenizer = configured(decoder, tmp_path, eos_token={"content": token} if described else token)
    found = qgraph.generate(decoder, PROMPT, tokenizer=tokenizer)
    assert found.ids == wanted[:end] and found.stopped == "end of text"


def test_without_any_end_token_a_note_says_so(decoder, tmp_path):
    tokenizer = configured(decoder, tmp_path)
    found = qgraph.generate(decoder, PROMPT, tokens=3, tokenizer=tokenizer)
    assert WITHOUT_END in found.notes and len(found.ids) == 3


def test_draws_depend_on_the_seed_alone(decoder):
    options = {"tokens": 10, "temperature": 3.0}
    first, again, other = (
        qgraph.generate(decoder, PROMPT, **options, seed=seed).ids for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("kv", [True, False])
def test_the_context_ends_the_text_and_refuses_longer_prompts(tmp_path, kv):
    config = replace(TINY, context=7)
    weights = write_decoder(tmp_path, kv=kv, config=config)
    path = tmp_path / "m.onnx"
    found = qgraph.generate(path, PROMPT)
    # The model runs on 7 tokens, so the 8th is the last that it can say.
    assert found.ids == greedy(config, weights, PROMPT_IDS, 4)
    assert found.stopped == "end of context"
    assert len(qgraph.generate(path, "cdefghi").ids) == 1
    with pytest.raises(DataError, match="prompt has 8 tokens, the model's context is 7"):
        qgraph.generate(path, "cdefghij")
    # Without the metadata, the engine's own error says where it ended.
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, path)
    with pytest.raises(EngineError, match="failed at token 8: .*context may be shorter"):
        qgraph.generate(path, PROMPT)


# -- toy decoders: the next token is (sum of the tokens + last position + sum of the mask) mod 50 ----

TOY = """toy (int64[b, {seq}] input_ids{more}, float[b, 1, past, 1] old)
      => (float[b, 1, 50] logits, float[b, 1, total, 1] new) {{
    x = Cast<to = 1>(input_ids)
    x4 = Unsqueeze(x, axes)
    new = Concat<axis = 2>(old, x4)
    tokens = ReduceSum<keepdims = 0>(new)
    {sums}
    n = Mod<fmod = 1>(sum, size)
    d = Sub(range, n)
    square = Mul(d, d)
    scores = Neg(square)
    logits = Unsqueeze(scores, both)
}}"""
INPUTS = {
    "position_ids": "int64[b, s] position_ids",
    "attention_mask": "int64[b, t] attention_mask",
}


def toy(path, *, given=(), seq="s"):
    more = "".join(f", {INPUTS[name]}" for name in given)
    position = "p = ReduceMax<keepdims = 0>(position_ids) pf = Cast<to = 1>(p)"
    mask = "m = ReduceSum<keepdims = 0>(attention_mask) mf = Cast<to = 1>(m)"
    position = position if "position_ids" in given else "pf = Identity(zero)"
    mask = mask if "attention_mask" in given else "mf = Identity(zero)"
    sums = f"{position} {mask} half = Add(tokens, pf) sum = Add(half, mf)"
    constants = {
        "axes": np.array([1, 3]),
        "both": np.array([0, 1]),
        "zero": np.float32(0),
        "size": np.float32(50),
        "range": np.arange(50, dtype=np.float32),
    }
    onnx.save(model(TOY.format(seq=seq, more=more, sums=sums), constants), path)
    return path


def toy_answer(ids, count, given):
    ids = list(ids)
    for _ in range(count):
        position = (len(ids) - 1) * ("position_ids" in given)
        ids.append((sum(ids) + position + len(ids) * ("attention_mask" in given)) % 50)
    return ids[-count:]


@pytest.mark.parametrize("given", [(), ("position_ids",), ("attention_mask",), tuple(INPUTS)])
@pytest.mark.parametrize("seq", ["s", 1])
def test_masks_positions_and_a_length_of_one(tmp_path, given, seq):
    path = toy(tmp_path / "toy.onnx", given=given, seq=seq)
    if seq == 1 and "position_ids" in given:
        proto = onnx.load(path)
        proto.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 1
        onnx.save(proto, path)
    ids = [3, 1, 4, 1, 5]
    assert qgraph.generate(path, ids, tokens=9).ids == toy_answer(ids, 9, given)


def test_a_fixed_length_is_refused(tmp_path):
    path = toy(tmp_path / "toy.onnx", seq=4)
    with pytest.raises(DataError, match="'input_ids': takes 4 tokens in a run, there are 2"):
        qgraph.generate(path, [1, 2])


NO_DECODERS = {
    "x: float32": "(float[n, 3, 8, 8] x) => (float[n, 3, 8, 8] y) { y = Relu(x) }",
    "types: int64": """(int64[b, s] ids, int64[b, s] types) => (float[b, s] y) {
        z = Add(ids, types) y = Cast<to = 1>(z) }""",
    "which output": """(int64[b, s] ids) => (float[b, s] y, float[b, s] z) {
        y = Cast<to = 1>(ids) z = Neg(y) }""",
}


@pytest.mark.parametrize(("words", "text"), NO_DECODERS.items(), ids=NO_DECODERS)
def test_what_is_no_decoder_is_told_what_is_missing(tmp_path, text, words):
    onnx.save(model(f"g {text}"), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=words):
        qgraph.generate(tmp_path / "m.onnx", [1])


def test_outputs_that_are_no_logits(tmp_path):
    text = "g (int64[b, s] ids) => (float[b, s] y) { y = Cast<to = 1>(ids) }"
    onnx.save(model(text), tmp_path / "m.onnx")
    with pytest.raises(EngineError, match="shape .* no logits"):
        qgraph.generate(tmp_path / "m.onnx", [1])


def test_wrong_options_and_files(decoder, tmp_path):
    with pytest.raises(UsageError, match="0 tokens"):
        qgraph.generate(decoder, PROMPT, tokens=0)
    with pytest.raises(UsageError, match="temperature"):
        qgraph.generate(decoder, PROMPT, temperature=-1)
    with pytest.raises(DataError, match="no tokens"):
        qgraph.generate(decoder, "")
    with pytest.raises(DataError, match="the token 40, the model knows 40"):
        qgraph.generate(decoder, [1, 40])
    with pytest.raises(UsageError, match="no such file"):
        qgraph.generate(decoder, PROMPT, tokenizer=tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ModelError, match="is no tokenizer"):
        qgraph.generate(decoder, PROMPT, tokenizer=tmp_path / "bad.json")
    (tmp_path / "m.onnx").write_bytes(decoder.read_bytes())
    with pytest.raises(UsageError, match=r"no tokenizer.json beside it; pass --tokenizer"):
        qgraph.generate(tmp_path / "m.onnx", PROMPT)


def test_without_the_package_the_error_says_what_to_install(decoder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"pip install 'qgraph\[text\]'"):
        qgraph.generate(decoder, PROMPT)
