"""The real decoder, where `python -m models.zoo.smollm2 --kv` has built it."""

import pytest
from realmodels import shared

import qgraph

CHAT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.slow
def test_it_answers_a_question_and_ends():
    model = shared("models", "smollm2_135m_instruct_kv.onnx")
    found = qgraph.generate(model, CHAT, tokens=12, tokenizer=shared("models", "tokenizer.json"))
    assert found.text == "The capital of France is Paris." and found.stopped == "end of text"
    assert found.notes == []
