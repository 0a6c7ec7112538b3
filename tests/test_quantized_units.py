"""Finding and taking away the Q/DQ of what an engine refuses."""

import ml_dtypes
import numpy as np
import pytest
from harness import assert_close, model, ops, run_reference
from hypothesis import given
from hypothesis import strategies as st

from qgraph import onnx_io
from qgraph.quantized_units import QuantizedUnit, drop_units, find_culprits, quantized_units

UNITS = [QuantizedUnit(f"n{index}", (0,)) for index in range(40)]


class Builder:
    """Refuses some units on their own, and some sets of units only together."""

    def __init__(self, *bad: set[int]) -> None:
        self.bad, self.builds = bad, 0

    def refuses(self, units) -> str | None:
        self.builds += 1
        kept = {UNITS.index(each) for each in units}
        return next((f"refuses {sorted(each)}" for each in self.bad if each <= kept), None)


@given(
    st.lists(st.sets(st.integers(0, 39), min_size=1, max_size=3), min_size=1, max_size=5),
    st.sets(st.integers(0, 39), max_size=4),
)
def test_without_the_culprits_it_builds_and_each_is_needed(bad, hinted):
    builder = Builder(*bad)
    hints = [UNITS[index] for index in sorted(hinted)]
    found = find_culprits(UNITS, builder.refuses, hints)
    assert builder.refuses([each for each in UNITS if each not in found]) is None
    assert {UNITS.index(each) for each in found} <= set().union(*bad)
    assert len(found) <= len(bad) and all(found.values())


def test_one_culprit_among_many_takes_few_builds():
    builder = Builder({17})
    assert list(find_culprits(UNITS, builder.refuses)) == [UNITS[17]]
    assert builder.builds <= 15
    named = Builder({17})
    assert list(find_culprits(UNITS, named.refuses, [UNITS[17]])) == [UNITS[17]]
    assert named.builds == 2


TEXT = """net (float[1,16,8,8] x) => (float[1,16,8,8] y) {
  [shared] q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  w = DequantizeLinear(c, ws)
  [first] a = Conv(d, w)
  q2 = QuantizeLinear(a, s, z)
  d2 = DequantizeLinear(q2, s, z)
  w2 = DequantizeLinear<axis = 0>(c2, ws2)
  [second] b = Conv(d2, w2)
  [residual] y = Add(b, d)
}"""
WEIGHTS = {
    "s": np.float32(0.05),
    "z": np.int8(0),
    "ws": np.float32(0.002),
    "c": np.random.default_rng(0).integers(-127, 128, (16, 16, 1, 1)).astype(np.int8),
    "ws2": np.linspace(0.01, 0.02, 16, dtype=np.float32),
    "c2": np.random.default_rng(1).integers(-127, 128, (16, 16, 1, 1)).astype(np.int8),
}


def test_units_are_the_readers_of_codes():
    found = quantized_units(onnx_io.load(model(TEXT, WEIGHTS)))
    assert [(each.node, each.inputs) for each in found] == [
        ("first", (0, 1)),
        ("second", (0, 1)),
        ("residual", (1,)),
    ]


def test_dropping_leaves_others_as_they_are():
    graph = onnx_io.load(model(TEXT, WEIGHTS))
    first, second, residual = quantized_units(graph)
    drop_units(graph, [second])
    out = onnx_io.to_proto(graph)
    assert ops(out).count("QuantizeLinear") == 1 and ops(out).count("DequantizeLinear") == 2
    assert [each.node for each in quantized_units(graph)] == ["first", "residual"]
    # Weights keep the values that their codes stand for; only the activation's rounding is gone.
    feeds = {"x": np.random.default_rng(2).standard_normal((1, 16, 8, 8)).astype(np.float32)}
    assert_close(run_reference(model(TEXT, WEIGHTS), feeds), run_reference(out, feeds), 0.02)
    drop_units(graph, [first, residual])
    assert set(ops(onnx_io.to_proto(graph))) == {"Conv", "Add"}


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.int4])
def test_codes_of_other_types_become_what_they_stand_for(dtype):
    text = """net (float[2,64] x) => (float[2,4] y) {
      w = DequantizeLinear<axis = 0, block_size = 32>(c, s)
      y = MatMul(x, w)
    }"""
    codes = np.random.default_rng(0).integers(-7, 8, (64, 4)).astype(dtype)
    scale = np.array([[0.5] * 4, [0.25] * 4], np.float32)
    graph = onnx_io.load(model(text, {"c": codes, "s": scale}))
    drop_units(graph, quantized_units(graph))
    (node,) = graph.nodes()
    expected = codes.astype(np.float32) * np.repeat(scale, 32, axis=0)
    np.testing.assert_array_equal(graph.array(node.inputs[1]), expected)
