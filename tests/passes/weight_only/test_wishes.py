"""Bits, groups and methods of single layers."""

import numpy as np
import pytest
from fewbits import decoder, logits, quantized, relative, windows
from llamas import TINY

from qgraph.errors import UsageError
from qgraph.passes.weight_only.quantize import WeightOnly
from qgraph.passes.weight_only.wishes import read_wishes


def types(report):
    return {layer["name"]: layer["type"] for layer in report.layers}


def test_a_line_gives_its_layers_bits_group_and_method(captured):
    graph = decoder()
    lines = ["*mlp*=3", "*mlp.down*=8:32:rtn", "*attn.v*=float", "*attn.q*=int2:64:clipped"]
    report = quantized(graph, layers=lines, accuracy_level=0)
    found = types(report)
    wanted = {"down": "uint8", "up": "uint3", "gate": "uint3", "attn.q": "uint2", "attn.o": "uint4"}
    for name, kind in wanted.items():
        assert {v for k, v in found.items() if name in k} == {kind}, name
    assert not any("attn.v" in name for name in found)
    reasons = [each.reason for each in report.refused if "attn.v" in each.where]
    assert len(reasons) == TINY.layers and "'*attn.v*=float'" in reasons[0]
    methods = {layer["method"] for layer in report.layers if "down" in layer["name"]}
    assert methods == {"rtn"}
    groups = {n: s.weight.encoding.block[0] for n, s in captured}
    assert {g for n, g in groups.items() if "down" in n} == {32}
    assert {g for n, g in groups.items() if "up" in n} == {16}
    # Folding one scale into a norm in front of layers of several widths changes no result.
    simulated = decoder()
    for weight, solution in captured:
        value = simulated.main.initializers[weight]
        value.const_value = simulated.constant("simulated", solution.effective()).const_value
    (feeds,) = windows(1, seed=9)
    assert relative(logits(graph, feeds), logits(simulated, feeds)) < 1e-3


def test_layers_that_say_what_the_others_do_change_nothing():
    plain, named = decoder(), decoder()
    quantized(plain)
    quantized(named, layers=["*=4:16:gptq"])
    (feeds,) = windows(1, seed=9)
    np.testing.assert_array_equal(logits(plain, feeds), logits(named, feeds))


def test_single_layers_of_a_recipe_with_codebooks_get_codes():
    graph = decoder()
    found = types(quantized(graph, method="nf4", layers=["*mlp.down*=8:0"]))
    assert sorted(set(found.values())) == ["nf4", "uint8"]
    (feeds,) = windows(1, seed=9)
    assert relative(logits(graph, feeds), logits(decoder(), feeds)) < 0.4


def test_named_layers_keep_their_bits_where_the_worst_get_eight():
    report = quantized(decoder(), layers=["*mlp.down*=2"], skip_worse=3)
    found = types(report)
    assert {v for k, v in found.items() if "mlp.down" in k} == {"uint2"}
    assert sorted(found.values()).count("uint8") == 3


@pytest.mark.parametrize(
    ("line", "name", "message"),
    [
        ("*nothing*=4", "cpu", "'[*]nothing[*]=4' fits no linear layer"),
        ("logits=8", "cpu", "weight_only.head=true"),
        ("*mlp.down*=4:48", "cpu", "no groups of 48"),
        ("*mlp.down*=8:64", "tensorrt", "no 8-bit weights"),
    ],
)
def test_lines_that_can_not_be_kept_are_refused(line, name, message):
    with pytest.raises(UsageError, match=message) as caught:
        quantized(decoder(), name=name, group=64, layers=[line])
    assert line in str(caught.value)


@pytest.mark.parametrize(
    "line", ["", "down", "=4", "a=5", "a=4:x", "a=4:-1", "a=4:32:rtn:1", "a=4::nf4", "a=float:32"]
)
def test_lines_that_can_not_be_read_are_refused_at_once(line):
    with pytest.raises(UsageError, match="weight_only.*layers"):
        WeightOnly.with_options({"layers": [line]})


def test_a_name_may_have_an_equals_sign():
    (wish,) = read_wishes(["a=b=4::rtn"])
    assert (wish.pattern, wish.bits, wish.group, wish.method) == ("a=b", 4, None, "rtn")
