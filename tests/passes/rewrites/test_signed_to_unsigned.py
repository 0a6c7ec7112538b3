"""Int8 activations as uint8."""

import numpy as np
import onnx
import pytest
from harness import apply, check_fires, check_stays, model, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.rewrites.signed_to_unsigned import SignedToUnsigned

PAIR = """net (float[2, 8] x) => (float[2, 8] y, float[2, 8] z) {
  q = QuantizeLinear(x, s, zp)
  y = DequantizeLinear(q, s, zp)
  d = DequantizeLinear(q, s, zp)
  z = Relu(d)
}"""


def codes_of(proto):
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


@settings(max_examples=15, deadline=None)
@given(
    st.floats(2.0**-20, 2.0**10, width=32),
    st.integers(-128, 127),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=16, max_size=16),
)
def test_floats_stay_the_same_bit_for_bit(scale, zero, values):
    proto = model(PAIR, {"s": np.float32(scale), "zp": np.int8(zero)})
    out, reports, _ = apply(SignedToUnsigned(), proto)
    assert reports[-1].changed == 1
    feeds = {"x": np.array(values, np.float32).reshape(2, 8)}
    want, have = run_reference(proto, feeds), run_reference(out, feeds)
    for name in want:
        np.testing.assert_array_equal(want[name], have[name])
    kinds = {a.dtype.name for a in codes_of(out).values() if a.dtype.kind in "iu"}
    assert kinds == {"uint8"}


def test_a_second_run_is_quiet():
    check_fires(
        SignedToUnsigned(),
        model(PAIR, {"s": np.float32(0.05), "zp": np.int8(0)}),
        changed=1,
    )


def test_one_scale_a_channel():
    text = """net (float[2, 3, 4] x) => (float[2, 3, 4] y) {
      q = QuantizeLinear<axis = 1>(x, s, zp)
      y = DequantizeLinear<axis = 1>(q, s, zp)
    }"""
    inits = {"s": np.array([0.1, 0.2, 0.3], np.float32), "zp": np.array([-5, 0, 9], np.int8)}
    check_fires(SignedToUnsigned(), model(text, inits), changed=1)


def test_weights_stay_int8():
    text = """net (float[2, 4] x) => (float[2, 4] y) {
      wd = DequantizeLinear(w, s)
      q = QuantizeLinear(x, s, zp)
      d = DequantizeLinear(q, s, zp)
      y = MatMul(d, wd)
    }"""
    inits = {
        "w": np.arange(16, dtype=np.int8).reshape(4, 4),
        "s": np.float32(0.1),
        "zp": np.int8(3),
    }
    out = check_fires(SignedToUnsigned(), model(text, inits), changed=1)
    assert codes_of(out)["w"].dtype == np.int8


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("net (float[2] x) => (int8[2] y) { y = QuantizeLinear(x, s, zp) }", "graph output"),
        (
            """net (float[2] x) => (float[2] y) {
              q = QuantizeLinear(x, s, zp)
              n = Neg(q)
              y = DequantizeLinear(n, s, zp)
            }""",
            "read by Neg",
        ),
        (
            """net (float[2] x) => (float[2] y) {
              q = QuantizeLinear(x, s, zp)
              y = DequantizeLinear(q, s)
            }""",
            "other zero points",
        ),
        (
            """net (float[2] x, float t) => (float[2] y) {
              q = QuantizeLinear(x, t, zp)
              y = DequantizeLinear(q, t, zp)
            }""",
            "computed",
        ),
    ],
)
def test_what_stays(text, reason):
    inits = {"s": np.float32(0.1), "zp": np.int8(3)}
    if "s," not in text and "s)" not in text:
        del inits["s"]
    check_stays(SignedToUnsigned(), model(text, inits), reason)
