"""DequantizeLinear in front of operators that move codes."""

import numpy as np
import pytest
from harness import check_fires, check_stays, model, ops

from qgraph.passes.rewrites.dequantize_early import DequantizeEarly

INITS = {"s": np.float32(0.05), "zp": np.uint8(120)}


def net(middle: str, more: str = "") -> str:
    return f"""net (float[1, 2, 4, 4] x) => (float[a, b, c, d] y{more}) {{
      q = QuantizeLinear(x, s, zp)
      {middle}
      y = DequantizeLinear(r, s, zp)
    }}"""


@pytest.mark.parametrize(
    ("middle", "op"),
    [
        ("r = Transpose<perm = [0, 2, 3, 1]>(q)", "Transpose"),
        ("r = MaxPool<kernel_shape = [2, 2]>(q)", "MaxPool"),
        ("r = Reshape(q, shape)", "Reshape"),
        ("r = Identity(q)", "Identity"),
        ("r = Gather<axis = 3>(q, index)", "Gather"),
    ],
)
def test_the_two_change_places(middle, op):
    inits = dict(INITS)
    if op == "Reshape":
        inits["shape"] = np.array([1, 1, -1, 2])
    if op == "Gather":
        inits["index"] = np.array([3, 0])
    out = check_fires(DequantizeEarly(), model(net(middle), inits), changed=1)
    assert ops(out) == ["QuantizeLinear", "DequantizeLinear", op]


def test_chains_are_walked_to_their_start():
    middle = "t = Transpose(q)\n r = Transpose(t)"
    out = check_fires(DequantizeEarly(), model(net(middle), INITS), changed=2)
    assert ops(out) == ["QuantizeLinear", "DequantizeLinear", "Transpose", "Transpose"]


def test_codes_with_a_second_reader_stay():
    middle = "r = Transpose(q)"
    proto = model(net(middle, ", uint8[4, 4, 2, 1] r"), INITS)
    check_stays(DequantizeEarly(), proto)


def test_scales_a_channel_stay():
    text = """net (float[2, 2] x) => (float[2, 2] y) {
      q = QuantizeLinear<axis = 1>(x, s, zp)
      r = Transpose(q)
      y = DequantizeLinear<axis = 0>(r, s, zp)
    }"""
    inits = {"s": np.array([0.1, 0.2], np.float32), "zp": np.array([1, 2], np.uint8)}
    check_stays(DequantizeEarly(), model(text, inits), "a scale a channel")


def test_max_pool_needs_a_positive_scale():
    middle = "r = MaxPool<kernel_shape = [2, 2]>(q)"
    proto = model(net(middle), {**INITS, "s": np.float32(-0.05)})
    check_stays(DequantizeEarly(), proto, "not positive")
