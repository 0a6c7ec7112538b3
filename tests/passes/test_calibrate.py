import math
import random

import numpy as np
import pytest
from harness import model, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from quantsim import samples

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.encoding import Spec, encode_range
from qgraph.errors import DataError, UsageError
from qgraph.facts import Placement, Plan
from qgraph.passes.calibrate import Calibrate, encode
from qgraph.passes.collect import extremes
from qgraph.passes.observers import observer, observers
from qgraph.passes.plan import PlanQuantization
from qgraph.pipeline import Pipeline
from qgraph.target import target

NAMES = sorted(observers())
UNORDERED = [name for name in NAMES if not observer(name).ordered]
SAMPLES = st.lists(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5), min_size=1, max_size=12
)


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -- observers ---------------------------------------------------------------------------------


def watch(name, arrays):
    found = observer(name)()
    for array in arrays:
        found.observe(np.array(array, np.float32))
    return found


@pytest.mark.parametrize("name", UNORDERED)
@settings(max_examples=100, deadline=None)
@given(arrays=SAMPLES, seed=st.integers(0, 1000), shards=st.integers(1, 4))
def test_order_and_sharding_change_nothing_to_the_bit(name, arrays, seed, shards):
    want = watch(name, arrays).range()
    shuffled = arrays[:]
    random.Random(seed).shuffle(shuffled)
    assert watch(name, shuffled).range() == want
    parts = [watch(name, shuffled[i::shards]) for i in range(shards)]
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    assert whole.range() == want


@settings(max_examples=100, deadline=None)
@given(arrays=SAMPLES)
def test_ranges_by_definition(arrays):
    lows = [min(np.float32(a)) for a in arrays]
    highs = [max(np.float32(a)) for a in arrays]
    assert watch("minmax", arrays).range() == (min(lows), max(highs))
    mean = math.fsum(map(float, lows)) / len(lows), math.fsum(map(float, highs)) / len(highs)
    assert watch("mean-minmax", arrays).range() == mean


@pytest.mark.parametrize("name", NAMES)
def test_nothing_observed_and_empty_samples(name):
    found = observer(name)()
    found.observe(np.zeros((0, 3), np.float32))
    with pytest.raises(ValueError, match="nothing was observed"):
        found.range()


@pytest.mark.parametrize("name", [name for name in NAMES if observer(name).extremes_only])
def test_extremes_are_enough_where_the_observer_says_so(name):
    arrays = [rand(4, 5, seed=s) for s in range(3)]
    short = [np.array([a.min(), a.max()]) for a in arrays]
    assert watch(name, arrays).range() == watch(name, short).range()


def test_unknown_observer():
    with pytest.raises(UsageError, match="observer 'minmx'.*did you mean 'minmax'"):
        Calibrate(observer="minmx")


# -- extremes ----------------------------------------------------------------------------------

NET = """g (float[N,8] x) => (float[N,4] y) {
    a = MatMul(x, w)
    r = Relu(a)
    y = MatMul(r, v)
}"""
WEIGHTS = {"w": rand(8, 6), "v": rand(6, 4, seed=1)}


def data(count=5):
    return [{"x": rand(3, 8, seed=s)} for s in range(count)]


def test_extremes_are_those_of_the_unoptimised_values():
    proto = model(NET, WEIGHTS)
    graph = onnx_io.load(proto)
    before = onnx_io.to_proto(graph)
    found = list(extremes(graph, ["x", "a", "r", "y"], data()))
    assert onnx_io.to_proto(graph) == before
    open_proto = model(
        NET.replace("(float[N,4] y)", "(float[N,4] y, float[N,6] a, float[N,6] r)"), WEIGHTS
    )
    for feeds, sample in zip(data(), found, strict=True):
        values = {**run_reference(open_proto, feeds), **feeds}
        for name in ("x", "a", "r", "y"):
            want = [values[name].min(), values[name].max()]
            np.testing.assert_allclose(sample[name], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, -1])
def test_one_bad_element_among_many_is_found_and_named(bad, place):
    # onnxruntime's ReduceMin and ReduceMax alone step over NaN.
    x = rand(3, 8)
    x.reshape(-1)[place] = bad
    graph = onnx_io.load(model(NET, WEIGHTS))
    samples_ = [*data(2), {"x": x}]
    with pytest.raises(DataError, match="sample 2 makes 'x' NaN or infinite; check the data"):
        list(extremes(graph, ["x"], samples_))


def test_infinities_can_be_let_through_and_nan_not():
    graph = onnx_io.load(model(NET, WEIGHTS))
    x = rand(3, 8)
    x[0, 0] = -np.inf
    (sample,) = extremes(graph, ["x"], [{"x": x}], infinite=True)
    assert sample["x"][0] == -np.inf and np.isfinite(sample["x"][1])
    x[0, 1] = np.nan
    x[0, 0] = 0
    with pytest.raises(DataError, match="NaN"):
        list(extremes(graph, ["x"], [{"x": x}], infinite=True))


def test_empty_values_are_left_out():
    graph = onnx_io.load(model(NET, WEIGHTS))
    (sample,) = extremes(graph, ["x", "a"], [{"x": np.zeros((0, 8), np.float32)}])
    assert sample == {}


# -- the pass ----------------------------------------------------------------------------------


def calibrate(proto, feeds, **options):
    graph = onnx_io.load(proto)
    context = Context(target=target("cpu"), data=feeds)
    seen = []
    context.progress = lambda *args: seen.append(args)
    stages = Pipeline([PlanQuantization(), Calibrate(**options)]).run(graph, context)
    return graph.facts, stages[-1].report, seen


@pytest.mark.parametrize("name", [*NAMES, "auto"])
def test_ranges_and_encodings_belong_together(name):
    facts, report, seen = calibrate(model(NET, WEIGHTS), data(), observer=name)
    assert set(facts.ranges) == set(facts.encodings) == set(facts.plan.activations) == {"x", "r"}
    for value, (low, high) in facts.ranges.items():
        want = encode_range(low, high, Spec("uint8", symmetric=False))
        assert facts.encodings[value].scale == want.scale
        assert facts.encodings[value].zero_point == want.zero_point
    assert facts.ranges["r"][0] == 0
    assert [line.split(":")[0] for line in report.details[-2:]] == ["r", "x"]
    assert ("calibrating", 5, 5) in seen


def test_a_generator_works_and_samples_are_not_merged():
    facts, _, seen = calibrate(model(NET, WEIGHTS), (d for d in data()), observer="mean-minmax")
    want = math.fsum(float(d["x"].max()) for d in data()) / 5
    assert facts.ranges["x"][1] == want and seen[-1][2] is None


def test_a_group_shares_the_union_of_its_ranges():
    spec = Spec("uint8", symmetric=False)
    plan = Plan(
        activations={
            "a": Placement(spec, "g", ""),
            "b": Placement(spec, "g", ""),
            "c": Placement(spec, "c", ""),
        }
    )
    found = encode(plan, {"a": (-1.0, 2.0), "b": (0.5, 6.0), "c": (0.0, 1.0)})
    assert found["a"] is found["b"] is not found["c"]
    assert found["a"].scale == np.float32(7 / 255) and found["c"].scale == np.float32(1 / 255)


@pytest.mark.parametrize("name", [*NAMES, "auto"])
def test_no_data_and_empty_data(name):
    with pytest.raises(DataError, match="calibration needs data; pass --data"):
        calibrate(model(NET, WEIGHTS), None, observer=name)
    with pytest.raises(DataError, match="has no samples"):
        calibrate(model(NET, WEIGHTS), [], observer=name)
    empty = {"x": np.zeros((0, 8), np.float32)}
    with pytest.raises(DataError, match="'r' was empty in every sample|'x' was empty"):
        calibrate(model(NET, WEIGHTS), [empty], observer=name)
    # One empty batch among others changes nothing.
    facts, _, _ = calibrate(model(NET, WEIGHTS), data(), observer=name)
    mixed, _, _ = calibrate(model(NET, WEIGHTS), [*data(), empty], observer=name)
    assert mixed.ranges == facts.ranges


def test_an_all_float_plan_needs_no_data():
    proto = model("g (float[N,8] x) => (float[N,8] y) { y = Exp(x) }")
    facts, _, _ = calibrate(proto, None)
    assert facts.ranges == {} and facts.encodings == {}


def test_data_is_checked_by_the_engine():
    with pytest.raises(DataError, match="x"):
        calibrate(model(NET, WEIGHTS), [{"z": rand(1, 8)}])
    with pytest.raises(DataError, match="x"):
        calibrate(model(NET, WEIGHTS), [{"x": rand(1, 9)}])


def test_the_same_data_twice_gives_the_same_bits():
    first, _, _ = calibrate(model(NET, WEIGHTS), samples(model(NET, WEIGHTS)))
    second, _, _ = calibrate(model(NET, WEIGHTS), samples(model(NET, WEIGHTS)))
    assert first.ranges == second.ranges


# -- observers that look at whole values -------------------------------------------------------


@pytest.mark.parametrize("name", ["percentile", "entropy", "mse", "auto"])
def test_order_and_batches_change_nothing(name):
    samples_ = data(40)
    want, _, _ = calibrate(model(NET, WEIGHTS), samples_, observer=name)
    turned, _, _ = calibrate(model(NET, WEIGHTS), samples_[::-1], observer=name)
    once, _, _ = calibrate(model(NET, WEIGHTS), iter(samples_), observer=name)
    assert want.ranges == turned.ranges == once.ranges
    if name != "auto":  # which samples are held back, and so the choice, goes by sample
        batches = [
            {"x": np.concatenate([s["x"] for s in samples_[i : i + 8]])} for i in range(0, 40, 8)
        ]
        batched, _, _ = calibrate(model(NET, WEIGHTS), batches, observer=name)
        # The engine may sum a larger product in another order; x itself is the same to the bit.
        assert batched.ranges["x"] == want.ranges["x"]
        assert batched.ranges["r"] == pytest.approx(want.ranges["r"], rel=1e-3)


@pytest.mark.parametrize("name", ["entropy", "mse"])
def test_a_small_memory_budget_changes_nothing_but_the_number_of_runs(name):
    samples_ = [{"x": rand(20_000, 8, seed=s)} for s in range(3)]
    want, _, _ = calibrate(model(NET, WEIGHTS), samples_, observer=name)
    split, report, seen = calibrate(model(NET, WEIGHTS), samples_, observer=name, memory_mb=1)
    assert split.ranges == want.ranges
    assert ("calibrating", 6, 6) in seen and "values in 2 groups" in report.details[0]


def test_whole_values_are_counted_not_their_extremes():
    feeds = [{"x": rand(200, 8, seed=1)}]
    facts, report, _ = calibrate(model(NET, WEIGHTS), feeds, observer="percentile", percentile=90.0)
    low, high = facts.ranges["x"]
    x = feeds[0]["x"]
    assert np.mean((x >= low) & (x <= high)) == pytest.approx(0.9, abs=0.01)
    assert report.details[0].startswith("1 samples in ") and "% of the time" in report.details[0]


@pytest.mark.parametrize("name", ["percentile", "entropy", "mse", "auto"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_are_named_by_every_observer(name, bad):
    x = rand(3, 8)
    x[1, 2] = bad
    with pytest.raises(DataError, match="sample 2 makes '[xr]' NaN or infinite; check the data"):
        calibrate(model(NET, WEIGHTS), [*data(2), {"x": x}], observer=name)


def test_a_dead_channel_and_a_constant_tensor():
    weights = {"w": rand(8, 6), "v": rand(6, 4, seed=1)}
    weights["w"][:, 2] = 0
    for name in [*NAMES, "auto"]:
        facts, _, _ = calibrate(model(NET, weights), data(12), observer=name)
        assert float(facts.encodings["r"].scale) > 0
        weights["w"][:] = 0
        facts, _, _ = calibrate(model(NET, weights), data(12), observer=name)
        assert facts.ranges["r"] == (0, 0) and facts.encodings["r"].scale == 1
        weights["w"] = rand(8, 6)


def test_auto_says_what_it_chose_and_takes_all_samples():
    samples_ = data(60)
    facts, report, seen = calibrate(model(NET, WEIGHTS), samples_, observer="auto")
    chosen = dict(line.split(": ", 1) for line in report.details if line[:3] in ("r: ", "x: "))
    method = next(line for line in report.details if line.startswith("x: ")).removeprefix("x: ")
    name, _, option = method.partition(" ")
    options = {{"percentile": "percentile", "mse": "norm"}[name]: float(option)} if option else {}
    again, _, _ = calibrate(model(NET, WEIGHTS), samples_, observer=name, **options)
    assert again.ranges["x"] == facts.ranges["x"] and set(chosen) == {"r", "x"}
    assert any(step[0] == "choosing" for step in seen)


def test_auto_leaves_out_an_outlier_that_only_one_sample_has():
    samples_ = data(80)
    # minmax must follow it, though 79 samples would lose almost all of their steps.
    samples_[3]["x"][0, 0] = 1000.0
    facts, _, _ = calibrate(model(NET, WEIGHTS), samples_, observer="auto")
    assert facts.ranges["x"][1] < 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observer": "aut"}, "did you mean 'auto'"),
        ({"observer": "percentile", "percentile": 101.0}, "calibrate: percentile is 101.0"),
        ({"observer": "mse", "norm": 0.0}, "calibrate: norm is 0.0"),
        ({"observer": "auto", "bins": 1000}, "calibrate: bins is 1000"),
        ({"memory_mb": 0}, "calibrate.memory_mb is 0; give 1 or more"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_runs(options, message):
    with pytest.raises(UsageError, match=message):
        Calibrate(**options)
