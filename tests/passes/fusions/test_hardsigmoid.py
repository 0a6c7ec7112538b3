import numpy as np
import pytest
from formulas import Formula
from harness import check_fires, check_stays, ops
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from qgraph import onnx_io
from qgraph.passes.fusions import FUSIONS
from qgraph.passes.fusions.hardsigmoid import HardSigmoid
from qgraph.pipeline import Pipeline
from qgraph.registry import load

SHAPE = {"x": ["batch", 4, 3, 3]}


def clip(f, x, low, high):
    if f.opset < 11:
        return f.op("Clip", x, min=low, max=high)
    return f.op("Clip", x, f.const(low, f.dtype), f.const(high, f.dtype))


def relu6(f, x):
    if f.choose(2):
        return f.either("Min", f.op("Relu", x), f.const(6.0))
    return clip(f, x, 0.0, 6.0)


def shifted(f):
    return f.scaled(relu6(f, f.either("Add", "x", f.const(3.0))), 1 / 6)


def attributes(proto):
    node = next(n for n in proto.graph.node if n.op_type == "HardSigmoid")
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def spread(seed=0):
    return {"x": np.random.default_rng(seed).uniform(-6, 6, (2, 4, 3, 3)).astype(np.float32)}


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_shifted_form_in_every_order(data):
    f = Formula(lambda n: data.draw(st.integers(0, n - 1)))
    out = check_fires(HardSigmoid(), f.model(SHAPE, shifted(f)), changed=1, feeds=spread())
    assert ops(out) == ["HardSigmoid"]
    assert attributes(out) == {"alpha": pytest.approx(1 / 6), "beta": 0.5}


@pytest.mark.parametrize("slope", [1 / 6, 0.2])
def test_sloped_form(slope):
    f = Formula()
    y = clip(f, f.either("Add", f.scaled("x", slope), f.const(0.5)), 0.0, 1.0)
    out = check_fires(HardSigmoid(), f.model(SHAPE, y), changed=1, feeds=spread())
    assert attributes(out) == {"alpha": pytest.approx(slope), "beta": 0.5}


@pytest.mark.parametrize("opset", [9, 10])
def test_bounds_as_attributes(opset):
    f = Formula(opset=opset)
    out = check_fires(HardSigmoid(), f.model(SHAPE, shifted(f)), changed=1, feeds=spread())
    assert ops(out) == ["HardSigmoid"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 5.0), (-1.0, 6.0), (1.0, 6.0)])
def test_other_bounds_are_refused(low, high):
    f = Formula()
    y = f.scaled(clip(f, f.op("Add", "x", f.const(3.0)), low, high), 1 / 6)
    check_stays(HardSigmoid(), f.model(SHAPE, y), "bounds are not the constants 0 and 6")


def test_a_missing_bound_is_refused():
    f = Formula()
    y = f.scaled(f.op("Clip", f.op("Add", "x", f.const(3.0)), f.const(0.0)), 1 / 6)
    check_stays(HardSigmoid(), f.model(SHAPE, y), "bounds are not")


def test_bounds_from_an_input_are_refused():
    f = Formula()
    y = f.scaled(f.op("Clip", f.op("Add", "x", f.const(3.0)), f.const(0.0), "top"), 1 / 6)
    check_stays(HardSigmoid(), f.model({**SHAPE, "top": []}, y), "bounds are not")


def test_integers_are_refused():
    f = Formula(dtype=np.int32)
    y = f.op("Div", clip(f, f.op("Add", "x", f.const(3)), 0, 6), f.const(6))
    check_stays(HardSigmoid(), f.model(SHAPE, y), "does not run on int32")


def test_float64_is_refused():
    f = Formula(dtype=np.float64)
    check_stays(HardSigmoid(), f.model(SHAPE, shifted(f)), "does not run on double")


def test_float16():
    f = Formula(dtype=np.float16)
    feeds = {k: v.astype(np.float16) for k, v in spread().items()}
    check_fires(HardSigmoid(), f.model(SHAPE, shifted(f)), feeds=feeds, rtol=2e-3)


@pytest.mark.parametrize(("shift", "by"), [(2.0, 1 / 6), (3.0, 1 / 5), (3.0, 1 / 3)])
def test_other_numbers_stay(shift, by):
    f = Formula()
    y = f.scaled(clip(f, f.op("Add", "x", f.const(shift)), 0.0, 6.0), by)
    check_stays(HardSigmoid(), f.model(SHAPE, y))


def test_an_image_moved_to_zero_and_one_stays():
    f = Formula()
    y = clip(f, f.op("Add", f.scaled("x", 0.5), f.const(0.5)), 0.0, 1.0)
    check_stays(HardSigmoid(), f.model(SHAPE, y))


def test_a_clip_read_elsewhere_stays():
    f = Formula()
    middle = clip(f, f.op("Add", "x", f.const(3.0)), 0.0, 6.0)
    check_stays(HardSigmoid(), f.model(SHAPE, f.scaled(middle, 1 / 6), middle))


def test_constants_that_add_axes_are_refused():
    f = Formula(constant_rank=5)
    check_stays(HardSigmoid(), f.model(SHAPE, shifted(f)), "a constant has more axes")


def test_behind_a_convolution_that_could_take_the_shift():
    f = Formula()
    y = f.op("Conv", "x", f.const(np.ones((4, 4, 1, 1))), f.const(np.ones(4)))
    y = f.scaled(clip(f, f.op("Add", y, f.const(3.0)), 0.0, 6.0), 1 / 6)
    passes = [load(reference)() for reference in FUSIONS]
    graph = onnx_io.load(f.model(SHAPE, y))
    Pipeline(passes).run(graph)
    assert [n.op_type for n in graph.nodes()] == ["Conv", "HardSigmoid"]
    assert [n.op_type for u in graph.facts.units for n in u.nodes] == ["Conv", "HardSigmoid"]
