from typing import Any

import numpy as np
import onnx
import pytest
from harness import model, ops, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from quantsim import samples

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.data.image_options import ImageOptions
from qgraph.data.pixels import normalize
from qgraph.errors import DataError, UsageError
from qgraph.flow import exact_passes, quantizing_passes
from qgraph.interface import Codes, Interface, Pixels
from qgraph.io_options import check_io
from qgraph.passes.quantize_io import QuantizeIO
from qgraph.pipeline import Pipeline
from qgraph.recipe import Recipe
from qgraph.target import target

HALF = ImageOptions(mean=(0.5,) * 3, std=(0.5,) * 3)
MEAN = ImageOptions(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WIDE = ImageOptions(mean=(0.1, 0.5, 0.9), std=(0.1, 0.5, 2.0), channels="BGR")
GRAY = ImageOptions(mean=(0.3,), std=(0.6,), channels="gray")
LAST = MEAN.model_copy(update={"layout": "NHWC"})


def net(options: ImageOptions = HALF, pads: str = "1,1,1,1", bias: bool = True) -> onnx.ModelProto:
    channels = 1 if options.channels == "gray" else 3
    rng = np.random.default_rng(0)
    last = options.layout == "NHWC"
    shape = f"n,8,8,{channels}" if last else f"n,{channels},8,8"
    turn = "t = Transpose <perm = [0, 3, 1, 2]> (image)" if last else ""
    arrays = {
        "w": rng.standard_normal((6, channels, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(6).astype(np.float32),
        "v": rng.standard_normal((6, 5)).astype(np.float32),
    }
    text = f"""g (float[{shape}] image) => (float[n,5] logits) {{
        {turn}
        c = Conv <pads = [{pads}]> ({"t" if last else "image"}, w{", b" if bias else ""})
        r = Relu (c)
        p = GlobalAveragePool (r)
        f = Flatten (p)
        logits = MatMul (f, v) }}"""
    return model(text, {k: v for k, v in arrays.items() if bias or k != "b"})


def pixels_of(options: ImageOptions, count: int = 3, seed: int = 0) -> np.ndarray:
    channels = 1 if options.channels == "gray" else 3
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 8, 8, channels)).astype(np.uint8)


def floats(raw: np.ndarray, options: ImageOptions) -> np.ndarray:
    x = normalize(raw, options)
    return np.ascontiguousarray(x if options.layout == "NHWC" else x.transpose(0, 3, 1, 2))


def compiled(
    proto: onnx.ModelProto,
    options: ImageOptions | None,
    precision: str = "int8",
    data: Any = None,
    **wanted: Any,
) -> tuple[onnx.ModelProto, Interface, list[Any]]:
    """Through the same passes as a compile, clean-up included."""
    graph = onnx_io.load(proto)
    recipe = Recipe(images=options)
    if data is None and options is not None:
        data = [{"image": floats(pixels_of(options, 1, seed), options)} for seed in range(8)]
    context = Context(target=target("cpu"), data=data or None, recipe=recipe)
    wishes = {"quantize_io": wanted, "calibrate": {"observer": "minmax"}}
    stages = Pipeline(exact_passes({})).run(graph, context)
    present = graph.facts.present()
    stages += Pipeline(quantizing_passes(precision, wishes), given=present).run(graph, context)
    out = onnx_io.to_proto(graph)
    onnx.checker.check_model(out, full_check=True)
    return out, graph.facts.io or Interface(), stages


def first_conv(out: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Result of the first convolution, before anything rounds it."""
    probe = onnx.ModelProto()
    probe.CopyFrom(out)
    conv = next(node for node in probe.graph.node if node.op_type == "Conv")
    del probe.graph.output[:]
    probe.graph.output.append(
        onnx.helper.make_tensor_value_info(conv.output[0], onnx.TensorProto.FLOAT, None)
    )
    return run_reference(probe, feeds)[conv.output[0]]


def weights(out: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    """Weight (dequantized, float64) of the first convolution and its scale."""
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in out.graph.initializer}
    conv = next(node for node in out.graph.node if node.op_type == "Conv")
    dq = next(node for node in out.graph.node if node.output[0] == conv.input[1])
    codes, scale = arrays[dq.input[0]].astype(np.float64), arrays[dq.input[1]].astype(np.float64)
    return codes * scale.reshape(-1, 1, 1, 1), scale


def convolved(x: np.ndarray, w: np.ndarray, pad: int) -> np.ndarray:
    """Plain float64 convolution with zero padding, NCHW, stride 1."""
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    high, wide = x.shape[2] - 2, x.shape[3] - 2
    parts = [
        np.einsum("nchw,mc->nmhw", x[:, :, i : i + high, j : j + wide], w[:, :, i, j])
        for i in range(3)
        for j in range(3)
    ]
    return np.sum(parts, axis=0)


# -- pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(
    "options", [HALF, MEAN, WIDE, GRAY, LAST], ids=["half", "mean", "wide", "gray", "last"]
)
def test_pixels_are_codes_of_the_first_convolution(options: ImageOptions, layout: str) -> None:
    proto = net(options)
    out, io, _ = compiled(proto, options, inputs="uint8", outputs="float", layout=layout)
    each = io.inputs["image"]
    assert isinstance(each, Pixels) and each.layout == layout
    names = ops(out)
    before = names[: names.index("Conv")]
    assert "QuantizeLinear" not in before and "Cast" not in before and "Mul" not in before
    raw = pixels_of(options, 4, 99)
    feed = raw if layout == "NHWC" else np.ascontiguousarray(raw.transpose(0, 3, 1, 2))
    got = first_conv(out, {"image": feed})
    # The reference: the weights that stand in the model, on floats made outside of it.
    x = floats(raw, options)
    x = x.transpose(0, 3, 1, 2) if options.layout == "NHWC" else x
    found, step = weights(out)
    slope = options.scale / np.mean(options.std)
    std = np.broadcast_to(options.std, x.shape[1])
    level = x.astype(np.float64) * (std / np.mean(std)).reshape(1, -1, 1, 1)
    bias = {t.name: t for t in proto.graph.initializer}["b"]
    want = convolved(level, found, 1) + onnx.numpy_helper.to_array(bias).reshape(1, -1, 1, 1)
    error = np.abs(got - want).max(axis=(0, 2, 3))
    inside = np.abs(got - want)[:, :, 1:-1, 1:-1].max(axis=(0, 2, 3))
    # Biases are rounded twice to steps of the accumulator; borders are off by half a pixel.
    old_step = 2 * np.abs(level).max() / 255 * step
    assert (inside <= slope * step + old_step + 1e-4).all()
    border = 0.5 * slope * np.abs(found).sum(axis=(1, 2, 3))
    assert (error <= inside + border).all()


def test_the_interior_is_more_exact_than_with_float_inputs() -> None:
    proto = net(HALF, pads="0,0,0,0")
    raw = pixels_of(HALF, 16, 5)
    x = floats(raw, HALF)
    want = run_reference(proto, {"image": x})["logits"]
    float_io = run_reference(compiled(proto, HALF)[0], {"image": x})["logits"]
    out, _, _ = compiled(proto, HALF, inputs="uint8", outputs="float")
    got = run_reference(out, {"image": raw})["logits"]
    assert np.square(got - want).sum() < np.square(float_io - want).sum()


def test_a_convolution_without_bias_gets_one() -> None:
    proto = net(HALF, bias=False)
    out, _, _ = compiled(proto, HALF, inputs="uint8", outputs="float")
    assert len(next(n for n in out.graph.node if n.op_type == "Conv").input) == 3
    raw = pixels_of(HALF, 8, 5)
    want = run_reference(proto, {"image": floats(raw, HALF)})["logits"]
    got = run_reference(out, {"image": raw})["logits"]
    assert np.abs(got - want).max() < 0.03 * np.ptp(want)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (ImageOptions(mean=(-0.5,)), "no pixel is zero"),
        (ImageOptions(mean=(1.5,)), "no pixel is zero"),
    ],
)
def test_where_no_pixel_is_zero_the_arithmetic_stands_in_front(
    options: ImageOptions, reason: str
) -> None:
    out, _, stages = compiled(net(options), options, inputs="uint8", outputs="float")
    assert {"Cast", "Mul", "Add"} <= set(ops(out))
    assert any(reason in r.reason for r in stages[-1].report.refused)
    without_border, _, _ = compiled(
        net(options, pads="0,0,0,0"), options, inputs="uint8", outputs="float"
    )
    assert "Cast" not in ops(without_border)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-dynamic"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_other_precisions_make_the_floats_in_front(precision: str, layout: str, dtype: str) -> None:
    proto = net(WIDE)
    plain, _, _ = compiled(proto, WIDE, precision, inputs="float", outputs="uint16")
    out, io, _ = compiled(
        proto, WIDE, precision, inputs=dtype, layout=layout, outputs="uint16", headroom=0.5
    )
    raw = pixels_of(WIDE, 4, 77)
    sample = io.raw({"image": floats(raw, WIDE)})
    assert sample["image"].dtype == np.dtype(dtype)
    assert sample["image"].shape == ((4, 8, 8, 3) if layout == "NHWC" else (4, 3, 8, 8))
    got = io.values(run_reference(out, sample))["logits"]
    want = run_reference(proto, {"image": floats(raw, WIDE)})["logits"]
    allowed = {"fp32": 2e-4, "fp16": 1e-2, "int8-dynamic": 0.03}[precision]
    assert np.abs(got - want).max() < allowed * np.ptp(want)
    assert plain.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_pixels_for_an_image_that_two_nodes_read() -> None:
    proto = model(
        """g (float[n,3,8,8] image) => (float[n,3,8,8] y) {
        c = Conv <pads = [1, 1, 1, 1]> (image, w)
        y = Add (c, image) }""",
        {"w": np.random.default_rng(1).standard_normal((3, 3, 3, 3)).astype(np.float32)},
    )
    out, _, stages = compiled(proto, MEAN, inputs="uint8", outputs="float")
    assert any("no single quantized" in r.reason for r in stages[-1].report.refused)
    raw = pixels_of(MEAN, 2, 3)
    want = run_reference(proto, {"image": floats(raw, MEAN)})["y"]
    got = run_reference(out, {"image": raw})["y"]
    assert np.abs(got - want).max() < 0.03 * np.ptp(want)


def test_raw_floats_need_a_cast_only() -> None:
    options = ImageOptions(scale=1)
    out, _, _ = compiled(net(options), options, "fp32", inputs="uint8", outputs="float")
    assert "Mul" not in ops(out) and "Add" not in ops(out)


def test_opset_15_makes_no_border_and_no_16_bit_outputs() -> None:
    proto = net(MEAN)
    del proto.opset_import[:]
    proto.opset_import.add(domain="", version=15)
    graph = onnx_io.load(proto)
    data = [{"image": floats(pixels_of(MEAN, 1, seed), MEAN)} for seed in range(4)]
    context = Context(target=target("cpu"), data=data, recipe=Recipe(images=MEAN))
    passes = quantizing_passes("int8", {"quantize_io": {"inputs": "uint8"}})
    stages = Pipeline(passes).run(graph, context)
    out = onnx_io.to_proto(graph)
    onnx.checker.check_model(out, full_check=True)
    assert any("needs opset 21" in line for line in stages[-1].report.warnings)
    assert any("needs opset 18" in each.reason for each in stages[-1].report.refused)
    raw = pixels_of(MEAN, 4, 9)
    want = run_reference(proto, {"image": floats(raw, MEAN)})["logits"]
    got = run_reference(out, {"image": raw})["logits"]
    assert np.abs(got - want).max() < 0.03 * np.ptp(want)


# -- from floats to pixels and back ----------------------------------------------------------------

Numbers = st.lists(st.floats(-2, 2), min_size=3, max_size=3).map(tuple)
Divisors = st.lists(st.floats(0.05, 4), min_size=3, max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    mean=Numbers,
    std=Divisors,
    scale=st.sampled_from([1.0, 1 / 255, 0.5, 2.0]),
    raw_layout=st.sampled_from(["NHWC", "NCHW"]),
    layout=st.sampled_from(["NHWC", "NCHW"]),
    dtype=st.sampled_from(["uint8", "int8"]),
    seed=st.integers(0, 1000),
)
def test_pixels_survive_the_way_to_floats_and_back(
    mean: Any, std: Any, scale: float, raw_layout: Any, layout: Any, dtype: str, seed: int
) -> None:
    options = ImageOptions(mean=mean, std=std, scale=scale, layout=layout)
    each = Pixels(dtype, raw_layout, options)
    raw = np.random.default_rng(seed).integers(0, 256, (2, 3, 4, 3))
    raw = (raw - each.shift).astype(dtype)
    raw = raw if raw_layout == "NHWC" else np.ascontiguousarray(raw.transpose(0, 3, 1, 2))
    x = each.to_float(raw)
    assert x.shape == ((2, 3, 4, 3) if layout == "NHWC" else (2, 3, 3, 4))
    np.testing.assert_array_equal(each.to_raw(x), raw)


def test_floats_between_pixels_are_refused() -> None:
    each = Pixels("uint8", "NHWC", HALF)
    x = floats(pixels_of(HALF, 1), HALF) + np.float32(0.4 / 127.5)
    with pytest.raises(DataError, match=r"8-bit pixels.*off by 0\.4.*uint8 arrays"):
        each.to_raw(x)
    assert np.array_equal(each.to_raw(x, nearest=True), pixels_of(HALF, 1))
    outside = np.full((1, 3, 2, 2), 1.5, np.float32)
    with pytest.raises(DataError, match="8-bit pixels"):
        each.to_raw(outside)
    with pytest.raises(DataError, match="8-bit pixels"):
        each.to_raw(np.full((1, 3, 2, 2), np.nan, np.float32))


# -- codes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_inputs_without_images_take_codes(dtype: str) -> None:
    proto = net(HALF)
    data = samples(proto, 8)
    float_io, _, _ = compiled(proto, None, data=data, outputs="uint16")
    out, io, _ = compiled(proto, None, data=data, inputs=dtype, outputs="float")
    each = io.inputs["image"]
    assert isinstance(each, Codes) and each.encoding.dtype == dtype
    texts = {entry.key: entry.value for entry in out.metadata_props}
    assert np.float32(texts["qgraph.input.image.scale"]) == each.encoding.scale
    assert int(texts["qgraph.input.image.zero_point"]) == int(each.encoding.zero_point)
    assert ops(out).count("QuantizeLinear") == ops(float_io).count("QuantizeLinear") - 1 - (
        dtype == "uint8"
    )
    # Codes made outside with what the metadata says give the very numbers of the float inputs.
    feeds = {"image": 3 * samples(proto, 1, 50)[0]["image"]}  # beyond the range at both ends
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    scale = np.float32(texts["qgraph.input.image.scale"])
    codes = np.rint(feeds["image"] / scale) + int(texts["qgraph.input.image.zero_point"])
    got = run_reference(out, {"image": np.clip(codes, low, high).astype(dtype)})
    plain, _, _ = compiled(proto, None, data=data)
    np.testing.assert_array_equal(got["logits"], run_reference(plain, feeds)["logits"])


def test_codes_without_quantization_use_the_ranges_of_the_data() -> None:
    proto = net(HALF)
    data = samples(proto, 8)
    out, io, _ = compiled(proto, None, "fp32", data=data, inputs="uint8", outputs="float")
    top = max(float(np.abs(each["image"]).max()) for each in data)
    found = io.inputs["image"]
    assert isinstance(found, Codes) and float(found.encoding.scale) * 255 >= top
    want = run_reference(proto, data[0])["logits"]
    got = run_reference(out, io.raw(data[0]))["logits"]
    assert np.abs(got - want).max() < 0.05 * np.ptp(want)


def test_only_float_inputs_and_outputs_change() -> None:
    proto = model(
        """g (int64[n] ids, float[n,4] x) => (float[n,4] y, int64[n] top) {
        e = Gather (table, ids)
        y = Mul (e, x)
        top = ArgMax <axis = 1, keepdims = 0> (y) }""",
        {"table": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)},
    )
    rng = np.random.default_rng(3)
    data = [
        {"ids": rng.integers(0, 4, 2), "x": rng.standard_normal((2, 4)).astype(np.float32)}
        for _ in range(4)
    ]
    out, io, _ = compiled(proto, None, "fp32", data=data, inputs="uint8")
    types = [v.type.tensor_type.elem_type for v in [*out.graph.input, *out.graph.output]]
    kinds = onnx.TensorProto
    assert types == [kinds.INT64, kinds.UINT8, kinds.UINT16, kinds.INT64]
    assert set(io.inputs) == {"x"} and set(io.outputs) == {"y"}


# -- outputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_outputs_are_codes_that_clip_nothing_seen(dtype: str) -> None:
    proto = net(HALF)
    data = samples(proto, 8)
    plain, _, _ = compiled(proto, None, data=data)
    out, io, _ = compiled(proto, None, data=data, outputs=dtype)
    assert not io.inputs and out.graph.output[0].name == "logits"
    texts = {entry.key: entry.value for entry in out.metadata_props}
    scale = float(texts["qgraph.output.logits.scale"])
    zero = int(texts["qgraph.output.logits.zero_point"])
    limits = np.iinfo(dtype)
    for feeds in data:
        want = run_reference(plain, feeds)["logits"]
        got = run_reference(out, feeds)["logits"]
        assert got.dtype == np.dtype(dtype)
        assert got.min() > limits.min and got.max() < limits.max
        assert np.abs((got.astype(np.int64) - zero) * scale - want).max() <= 0.5001 * scale


@pytest.mark.parametrize(("headroom", "share"), [(0.0, 1.0), (0.5, 0.5), (None, 1 / 1.2)])
def test_headroom_widens_the_range(headroom: float | None, share: float) -> None:
    proto = model("g (float[n,4] x) => (float[n,4] y) { y = Identity (x) }")
    data = [{"x": np.array([[-2, 0, 1, 2]], np.float32)}]
    _, io, _ = compiled(proto, None, "fp32", data=data, outputs="int8", headroom=headroom)
    assert float(io.outputs["y"].encoding.scale) * 255 * share == pytest.approx(4, rel=1e-6)


def test_a_bound_that_was_not_crossed_is_kept() -> None:
    proto = model("g (float[n,4] x) => (float[n,4] y) { y = Softmax (x) }")
    data = samples(proto, 4)
    _, io, _ = compiled(proto, None, "fp32", data=data, outputs="uint8")
    assert int(io.outputs["y"].encoding.zero_point) == 0


def test_an_output_that_is_read_inside_too_stays_what_it_was_there() -> None:
    proto = model(
        """g (float[n,4] x) => (float[n,4] a, float[n,4] b) {
        a = Exp (x)
        b = Tanh (a) }"""
    )
    data = samples(proto, 4)
    out, io, _ = compiled(proto, None, "fp32", data=data, outputs="uint16")
    want = run_reference(proto, data[0])
    got = io.values(run_reference(out, data[0]))
    assert list(got) == ["a", "b"]
    for name, array in want.items():
        assert np.abs(got[name] - array).max() <= float(io.outputs[name].encoding.scale)


def test_without_data_outputs_stay_in_float_and_that_is_said() -> None:
    out, io, stages = compiled(net(HALF), HALF, "fp32", data=[], inputs="uint8")
    assert not io.outputs and set(io.inputs) == {"image"}
    assert any("outputs stay in float" in line for line in stages[-1].report.warnings)
    assert out.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


# -- wrong uses ------------------------------------------------------------------------------------


def test_wrong_uses_are_told_in_one_line() -> None:
    graph = onnx_io.load(net(HALF))
    uint8 = QuantizeIO(inputs="uint8")
    with pytest.raises(UsageError, match=r"--io uint8 needs calibration data, or a recipe"):
        check_io(uint8, graph, None, None)
    with pytest.raises(UsageError, match="--io-outputs int8 needs calibration data"):
        check_io(QuantizeIO(outputs="int8"), graph, HALF, None)
    blurred = [{"image": np.full((1, 3, 8, 8), 0.1234, np.float32)}]
    with pytest.raises(DataError, match="not made of 8-bit pixels"):
        check_io(uint8, graph, HALF, blurred)
    check_io(uint8, graph, HALF, None)
    ids = onnx_io.load(model("g (int64[n] x) => (int64[n] y) { y = Neg (x) }"))
    with pytest.raises(UsageError, match="no float32 input"):
        check_io(uint8, ids, None, [{"x": np.zeros(1, np.int64)}])
    with pytest.raises(UsageError, match="headroom"):
        QuantizeIO.with_options({"headroom": -1})
    assert not QuantizeIO().active


def test_a_second_run_of_nothing_changes_nothing() -> None:
    graph = onnx_io.load(net(HALF))
    report = Pipeline([QuantizeIO()]).run(graph, Context())[0].report
    assert report.changed == 0 and graph.facts.io is not None and not graph.facts.io
