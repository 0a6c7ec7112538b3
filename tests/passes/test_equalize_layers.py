import numpy as np
import onnx
import pytest
from folds import constants, normal
from harness import apply, check_fires, check_stays, model, random_feeds
from quantsim import samples

from qgraph.context import Context
from qgraph.errors import DataError
from qgraph.passes import conv_pairs
from qgraph.passes.equalize_layers import EqualizeLayers

ON = EqualizeLayers(enabled=True)
SPREAD = np.array([1, 0.1, 0.02, 3, 0.5, 0.1], np.float32)


def chain(activation="Relu (c)", groups=1, tail="y = Exp (d)"):
    """Dense, depthwise, dense, with rows of unlike size."""
    text = f"""g (float[1,3,8,8] x) => (float[n,k,h,w] y) {{
        c = Conv <pads = [1, 1, 1, 1]> (x, first, bias)
        a = {activation}
        m = Conv <group = 6> (a, middle)
        b = Relu (m)
        d = Conv <group = {groups}> (b, last)
        {tail} }}"""
    arrays = {
        "first": normal(1, 6, 3, 3, 3) * SPREAD[:, None, None, None],
        "bias": normal(2, 6) * SPREAD,
        "middle": 0.1 * normal(3, 6, 1, 3, 3) * SPREAD[::-1, None, None, None],
        "last": 0.1 * normal(4, 4, 6 // groups, 1, 1),
        "zero": np.float32(0),
        "six": np.float32(6),
        "slope": np.abs(normal(5, 6, 1, 1)),
    }
    return model(text, {k: v for k, v in arrays.items() if k in text})


def context(proto):
    # Every fourth sample is held out; here it brings nothing new.
    return Context(data=[random_feeds(proto, seed % 2) for seed in (0, 1, 1, 0)])


def convs(proto: onnx.ModelProto) -> list[np.ndarray]:
    table = constants(proto)
    return [table[n.input[1]] for n in proto.graph.node if n.op_type == "Conv"]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "activation", ["Relu (c)", "LeakyRelu (c)", "PRelu (c, slope)", "Clip (c, zero, six)"]
)
def test_keeps_the_results(activation, groups):
    proto = chain(activation, groups)
    check_fires(ON, proto, changed=2, context=context(proto))


def clips(scales):
    """Samples of the chain with a Clip, each as large as said, and what becomes of it."""
    proto = chain("Clip (c, zero, six)")
    plain = random_feeds(proto, 0)
    data = [{"x": plain["x"] * np.float32(scale)} for scale in scales]
    return apply(ON, proto, Context(data=data))


def test_channels_that_other_samples_drive_into_the_clip_stay():
    # The second sample is held out: 5 times as large, it reaches bounds that the others don't.
    after, (report,), _ = clips([1, 5, 1, 1])
    assert any("on samples not seen the model keeps" in line for line in report.warnings)
    np.testing.assert_array_equal(convs(after)[0], convs(chain("Clip (c, zero, six)"))[0])
    # The pair behind the Relu is rescaled all the same.
    assert report.changed == 1
    _, (report,), _ = clips([1, 1, 1, 1])
    assert not report.warnings and report.changed == 2
    # What is held out counts for the ranges too.
    _, (report,), _ = clips([1, 1.01, 1, 1])
    assert not report.warnings


def test_a_single_sample_is_too_few_to_try_a_clip_on_others():
    _, (report,), _ = clips([1])
    assert any("too few samples" in line for line in report.warnings)


@pytest.mark.parametrize("groups", [1, 2])
def test_ranges_end_equal(groups):
    after, _, _ = apply(ON, chain(groups=groups), Context())
    first, middle, last = convs(after)
    written = np.abs(first).max(axis=(1, 2, 3))
    through = np.abs(middle).max(axis=(1, 2, 3))
    by_group = np.abs(last).reshape(groups, 4 // groups, 6 // groups)
    read = by_group.max(axis=1).reshape(-1)
    np.testing.assert_allclose(written, through, rtol=0.03)
    np.testing.assert_allclose(through, read, rtol=0.03)


def test_one_pair_by_definition():
    first, last = normal(1, 4, 3, 1, 1) * SPREAD[:4, None, None, None], normal(2, 5, 4, 1, 1)
    proto = model(
        """g (float[1,3,8,8] x) => (float[n,k,h,w] y) {
            c = Conv (x, first)
            a = Relu (c)
            y = Conv (a, last) }""",
        {"first": first, "last": last},
    )
    after, _, _ = apply(EqualizeLayers(enabled=True, rounds=1), proto, Context())
    s = np.sqrt(np.abs(first).max(axis=(1, 2, 3)) / np.abs(last).max(axis=(0, 2, 3)))
    new_first, new_last = convs(after)
    np.testing.assert_allclose(new_first, first / s[:, None, None, None], rtol=1e-5)
    np.testing.assert_allclose(new_last, last * s[:, None, None], rtol=1e-5)


def test_off_unless_asked():
    check_stays(EqualizeLayers(), chain())


def test_data_is_needed_for_a_clip_alone():
    apply(ON, chain(), Context())
    with pytest.raises(DataError, match="needs data"):
        apply(ON, chain("Clip (c, zero, six)"), Context())


def test_one_pass_data_leaves_clips_out():
    proto = chain("Clip (c, zero, six)")
    _, (report,), _ = apply(ON, proto, Context(data=iter(samples(proto))))
    assert report.changed == 1 and "read only once" in report.warnings[0]


@pytest.mark.parametrize(
    ("activation", "reason"),
    [("Sigmoid (c)", "no convolution through a scalable"), ("Clip (c)", "not from 0")],
)
def test_refuses(activation, reason):
    proto = chain(activation)
    _, (report,), _ = apply(ON, proto, context(proto))
    assert any(reason in refusal.reason for refusal in report.refused)


def test_a_shortcut_stays():
    proto = model(
        """g (float[1,3,8,8] x) => (float[n,k,h,w] y) {
            c = Conv (x, first)
            d = Conv (c, last)
            y = Add (c, d) }""",
        {"first": normal(1, 4, 3, 1, 1), "last": normal(2, 4, 4, 1, 1)},
    )
    check_stays(ON, proto, "read elsewhere")


def test_dead_channels_stay_finite():
    proto = chain()
    for tensor in proto.graph.initializer:
        if tensor.name in ("first", "bias"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[2] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    after = check_fires(ON, proto, context=context(proto))
    assert all(np.isfinite(weight).all() for weight in convs(after))


def test_scales_left_out_on_one_side_are_noticed(monkeypatch):
    real = conv_pairs.scaled
    monkeypatch.setattr(conv_pairs, "scaled", lambda w, factor: real(w, np.ones_like(factor)))
    proto = chain()
    with pytest.raises(AssertionError, match="error"):
        check_fires(ON, proto, context=context(proto))
