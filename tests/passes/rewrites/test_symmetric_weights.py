"""Constant codes without zero points: exact where they fit, else within the reported bound."""

import re

import numpy as np
import onnx
from harness import apply, check_fires, check_stays, model, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.rewrites._qdq import Parameters
from qgraph.passes.rewrites._recode import recode
from qgraph.passes.rewrites.symmetric_weights import SymmetricWeights


def codes_of(proto):
    found = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    return {name: array for name, array in found.items() if array.dtype.kind in "iu"}


def bound_in(report) -> float:
    [line] = report.details
    found = re.search(r"at most (\S+)$", line)
    return float(found[1]) if found else 0.0


WEIGHT = """net (float[2, 4] x) => (float[2, 3] y) {
  d = DequantizeLinear<axis = 1>(w, s, zp)
  y = MatMul(x, d)
}"""


def test_weights_that_fit_stay_bit_for_bit():
    w = np.random.default_rng(0).integers(20, 220, (4, 3)).astype(np.uint8)
    inits = {
        "w": w,
        "s": np.array([0.1, 0.2, 0.3], np.float32),
        "zp": np.array([120, 100, 130], np.uint8),
    }
    proto = model(WEIGHT, inits)
    out = check_fires(SymmetricWeights(), proto, changed=1, rtol=0)
    assert apply(SymmetricWeights(), proto)[1][-1].details[0].endswith("exact")
    assert all(a.dtype == np.int8 for a in codes_of(out).values())


def test_weights_that_do_not_fit_move_by_the_bound():
    w = np.array([[0, 255, 7], [255, 0, 9], [1, 2, 3], [80, 90, 99]], np.uint8)
    inits = {
        "w": w,
        "s": np.array([0.1, 0.2, 0.3], np.float32),
        "zp": np.array([0, 255, 5], np.uint8),
    }
    proto = model(WEIGHT, inits)
    out, reports, _ = apply(SymmetricWeights(), proto)
    eye = np.eye(4, dtype=np.float32)
    for half in (eye[:2], eye[2:]):
        moved = np.abs(
            run_reference(proto, {"x": half})["y"] - run_reference(out, {"x": half})["y"]
        )
        assert moved.max() <= bound_in(reports[-1]) * 1.001
        assert moved[:, 2].max() == 0


def test_a_weight_with_two_readers_is_stored_once():
    text = """net (float[2, 4] x) => (float[2, 3] y) {
      d = DequantizeLinear<axis = 1>(w, s, zp)
      e = DequantizeLinear<axis = 1>(w, s, zp)
      f = MatMul(x, d)
      g = MatMul(x, e)
      y = Add(f, g)
    }"""
    inits = {
        "w": np.full((4, 3), 130, np.uint8),
        "s": np.full(3, 0.1, np.float32),
        "zp": np.full(3, 128, np.uint8),
    }
    out = check_fires(SymmetricWeights(), model(text, inits), changed=2, rtol=0)
    assert sum(a.shape == (4, 3) for a in codes_of(out).values()) == 1


def test_codes_from_outside_stay():
    text = "net (uint8[2] x) => (float[2] y) { y = DequantizeLinear(x, s, zp) }"
    proto = model(text, {"s": np.float32(0.1), "zp": np.uint8(3)})
    check_stays(SymmetricWeights(), proto, "graph input")


def test_activations_are_left_alone():
    text = """net (float[4] x) => (float[4] y) {
      q = QuantizeLinear(x, s, zp)
      y = DequantizeLinear(q, s, zp)
    }"""
    proto = model(text, {"s": np.float32(0.1), "zp": np.uint8(3)})
    assert check_stays(SymmetricWeights(), proto)[-1].refused == []


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["int8", "uint8", "int4", "uint4"]),
    st.sampled_from([None, 0, 1]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_recoded_constants_keep_their_values_within_the_bound(dtype, axis, blocked, seed):
    """Against float64 arithmetic written out again, for every granularity."""
    rng = np.random.default_rng(seed)
    low, high = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}[dtype]
    codes = rng.integers(low, high + 1, (6, 5))
    shape = () if axis is None else (codes.shape[axis],)
    block = 4 if blocked and axis is not None else 0
    if block:
        shape = tuple(-(-n // 4) if i == axis else n for i, n in enumerate(codes.shape))
    scale = rng.uniform(0.01, 1, shape).astype(np.float32)
    narrow = rng.random() < 0.5
    middle = (low + high + 1) // 2
    zero = np.full(shape, middle) if narrow else rng.integers(low, high + 1, shape)
    old = Parameters(dtype, scale, np.asarray(zero, np.int64), axis, block)
    new = recode(codes, old)
    before = floats(codes, old)
    if isinstance(new, str):
        assert dtype.endswith("int4") and "4 bits" in new and not narrow
        return
    assert not new.parameters.zero_point.any() and new.parameters.dtype in ("int8", "int4")
    moved = np.abs(floats(new.codes, new.parameters) - before)
    assert moved.max() <= new.bound * (1 + 1e-9)
    assert (moved <= 0.5 * floats(np.ones((6, 5)), new.parameters) * (1 + 1e-6)).all()
    if narrow:
        assert new.bound == 0 and (moved == 0).all()


def floats(codes, found):
    """Dequantize in float64, element by element."""
    result = np.zeros(codes.shape)
    for place in np.ndindex(*codes.shape):
        index = () if found.axis is None else (place[found.axis],)
        if found.block:
            index = tuple(n // found.block if i == found.axis else n for i, n in enumerate(place))
        result[place] = (float(codes[place]) - found.zero_point[index]) * float(found.scale[index])
    return result
