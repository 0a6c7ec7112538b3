"""Protobuf's text format against the real protobuf."""

import pytest
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qgraph.deploy.pbtxt import Word, dumps
from qgraph.deploy.triton_check import parse
from qgraph.errors import ArtifactError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
dims = st.lists(st.integers(-1, 2**40), max_size=4)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=texts, keys=st.lists(st.tuples(texts, texts), max_size=3), shape=dims)
def test_what_is_written_is_what_protobuf_reads(messages, name, keys, shape) -> None:
    text = dumps(
        {
            "name": name,
            "input": [{"name": name, "data_type": Word("TYPE_FP32"), "dims": shape}],
            "parameters": [{"key": k, "value": {"string_value": v}} for k, v in keys],
        }
    )
    found = text_format.Parse(text, messages.ModelConfig())
    assert found.name == name and found.input[0].name == name
    assert list(found.input[0].dims) == shape
    assert {k: v.string_value for k, v in found.parameters.items()} == dict(keys)


def test_empty_messages_are_there_and_none_is_not(messages) -> None:
    found = parse(
        dumps({"dynamic_batching": {}, "optimization": None, "instance_group": []}), messages
    )
    assert found.HasField("dynamic_batching") and not found.HasField("optimization")


def test_bools_and_numbers(messages) -> None:
    warm = {"key": "x", "value": {"zero_data": True, "dims": [3]}}
    found = parse(dumps({"model_warmup": [{"batch_size": 2, "inputs": [warm]}]}), messages)
    assert found.model_warmup[0].inputs["x"].zero_data and found.model_warmup[0].batch_size == 2


def test_a_wrong_field_is_noticed(messages) -> None:
    with pytest.raises(ArtifactError, match="max_batch"):
        parse(dumps({"max_batch": 3}), messages)
