import numpy as np
import pytest
from formulas import Formula
from harness import check_fires, check_stays, ops
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.fusions.hardsigmoid import HardSigmoid
from qgraph.passes.fusions.hardswish import HardSwish

SHAPE = {"x": ["batch", 4, 3, 3]}


def clip(f, x, low=0.0, high=6.0):
    if f.opset < 11:
        return f.op("Clip", x, min=low, max=high)
    return f.op("Clip", x, f.const(low, f.dtype), f.const(high, f.dtype))


def hardswish(f, high=6.0):
    moved = f.either("Add", "x", f.const(3.0))
    if f.choose(2):
        gate = f.either("Min", f.op("Relu", moved), f.const(high))
    else:
        gate = clip(f, moved, 0.0, high)
    return f.product("x", gate, by=1 / 6)


def spread(dtype=np.float32):
    return {"x": np.random.default_rng(0).uniform(-6, 6, (2, 4, 3, 3)).astype(dtype)}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_clip_form_in_every_order(data):
    f = Formula(lambda n: data.draw(st.integers(0, n - 1)))
    out = check_fires(HardSwish(), f.model(SHAPE, hardswish(f)), changed=1, feeds=spread())
    assert ops(out) == ["HardSwish"]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_hardsigmoid_before_it_takes_nothing_away(data):
    f = Formula(lambda n: data.draw(st.integers(0, n - 1)))
    out = check_fires(
        [HardSigmoid(), HardSwish()], f.model(SHAPE, hardswish(f)), changed=1, feeds=spread()
    )
    assert ops(out) == ["HardSwish"]


@pytest.mark.parametrize("flip", [0, 1])
def test_hardsigmoid_form(flip):
    f = Formula(lambda n: flip)
    gate = f.op("HardSigmoid", "x", alpha=0.16666670143604279, beta=0.5)
    out = check_fires(HardSwish(), f.model(SHAPE, f.either("Mul", "x", gate)), feeds=spread())
    assert ops(out) == ["HardSwish"]


def test_sloped_clip_after_hardsigmoid():
    f = Formula()
    gate = clip(f, f.op("Add", f.scaled("x", 1 / 6), f.const(0.5)), 0.0, 1.0)
    out = check_fires(
        [HardSigmoid(), HardSwish()], f.model(SHAPE, f.op("Mul", gate, "x")), feeds=spread()
    )
    assert ops(out) == ["HardSwish"]


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.5), (1 / 6, 0.4)])
def test_other_hardsigmoids_are_refused(alpha, beta):
    f = Formula()
    y = f.op("Mul", "x", f.op("HardSigmoid", "x", alpha=alpha, beta=beta))
    check_stays(HardSwish(), f.model(SHAPE, y), "alpha and beta are not 1/6 and 0.5")


def test_default_hardsigmoid_is_refused():
    f = Formula()
    y = f.op("Mul", "x", f.op("HardSigmoid", "x"))
    check_stays(HardSwish(), f.model(SHAPE, y), "alpha and beta are not 1/6 and 0.5")


def test_other_bounds_are_refused():
    f = Formula()
    check_stays(HardSwish(), f.model(SHAPE, hardswish(f, high=5.0)), "bounds are not")


@pytest.mark.parametrize("opset", [10, 13])
def test_before_opset_14_it_says_so(opset):
    f = Formula(opset=opset)
    check_stays(HardSwish(), f.model(SHAPE, hardswish(f)), "HardSwish needs opset 14")


def test_opset_14_is_enough():
    f = Formula(opset=14)
    check_fires(HardSwish(), f.model(SHAPE, hardswish(f)), feeds=spread())


def test_float16():
    f = Formula(dtype=np.float16)
    check_fires(HardSwish(), f.model(SHAPE, hardswish(f)), feeds=spread(np.float16), rtol=2e-3)


def test_float64_and_integers_are_refused():
    f = Formula(dtype=np.float64)
    check_stays(HardSwish(), f.model(SHAPE, hardswish(f)), "does not run on double")
    f = Formula(dtype=np.int32)
    y = f.op("Div", f.op("Mul", "x", clip(f, f.op("Add", "x", f.const(3)), 0, 6)), f.const(6))
    check_stays(HardSwish(), f.model(SHAPE, y), "does not run on int32")


def test_a_gate_of_another_value_stays():
    f = Formula()
    gate = clip(f, f.op("Add", "z", f.const(3.0)))
    check_stays(HardSwish(), f.model({**SHAPE, "z": SHAPE["x"]}, f.product("x", gate, by=1 / 6)))


def test_a_clip_read_elsewhere_stays():
    f = Formula()
    gate = clip(f, f.op("Add", "x", f.const(3.0)))
    y = f.product("x", gate, by=1 / 6)
    check_stays(HardSwish(), f.model(SHAPE, y, gate))
