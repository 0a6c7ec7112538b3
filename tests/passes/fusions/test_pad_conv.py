"""Pad folds into Conv, AveragePool and MaxPool where it means the same there."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folds import SPACE, normal, only_node
from harness import check_fires, check_stays, model, ops
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.graph import Graph
from qgraph.passes.fusions.pad_conv import PadConv
from qgraph.pipeline import Pipeline

CONV = "Conv (y, weight)"
AVERAGE = "AveragePool <kernel_shape = [3, 3]> (y)"
MAX = "MaxPool <kernel_shape = [3, 3]> (y)"
LOW = np.float32(-np.inf)


def text(reader: str = CONV, pad: str = "Pad (x, pads)", shape: str = "2,4,10,9") -> str:
    return f"g (float[{shape}] x) => (float[p,q,r,s] z) {{ y = {pad}\n z = {reader} }}"


def pads(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def arrays(*values: int, **others: np.ndarray) -> dict[str, np.ndarray]:
    return {"weight": normal(1, 8, 4, 3, 3), "pads": pads(*values), **others}


def attribute(proto: onnx.ModelProto, op_type: str, name: str) -> object:
    found = {
        a.name: onnx.helper.get_attribute_value(a) for a in only_node(proto, op_type).attribute
    }
    return found.get(name)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_fires_on_conv(rank: int) -> None:
    begins, ends = list(range(1, rank + 1)), list(range(rank))
    out = ",".join("pqrst"[: rank + 2])
    proto = model(
        f"g (float[2,4,{SPACE[rank]}] x) => (float[{out}] z) {{ y = Pad (x, pads)\n z = {CONV} }}",
        {
            "weight": normal(1, 8, 4, *(3, 2, 2)[:rank]),
            "pads": pads(0, 0, *begins, 0, 0, *ends),
        },
    )
    result = check_fires(PadConv(), proto, changed=1)
    assert ops(result) == ["Conv"]
    assert attribute(result, "Conv", "pads") == [*begins, *ends]


def test_adds_to_the_own_padding() -> None:
    conv = "Conv <pads = [1, 0, 2, 1], strides = [2, 2]> (y, weight)"
    result = check_fires(PadConv(), model(text(conv), arrays(0, 0, 1, 2, 0, 0, 3, 4)), changed=1)
    assert attribute(result, "Conv", "pads") == [2, 2, 5, 5]


def test_auto_pad_valid_gives_way() -> None:
    conv = 'Conv <auto_pad = "VALID"> (y, weight)'
    result = check_fires(PadConv(), model(text(conv), arrays(0, 0, 1, 2, 0, 0, 3, 4)), changed=1)
    assert attribute(result, "Conv", "pads") == [1, 2, 3, 4]
    assert attribute(result, "Conv", "auto_pad") is None


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3]])
def test_pads_for_some_axes(axes: list[int]) -> None:
    values = range(1, 2 * len(axes) + 1)
    proto = model(text(pad="Pad (x, pads, , axes)"), arrays(*values, axes=np.array(axes, np.int64)))
    check_fires(PadConv(), proto, changed=1)


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_a_written_zero(value: float) -> None:
    zero = np.float32(value)
    proto = model(text(pad="Pad (x, pads, value)"), arrays(0, 0, 1, 1, 0, 0, 1, 1, value=zero))
    check_fires(PadConv(), proto, changed=1)


def test_pads_as_an_attribute_before_opset_11() -> None:
    # The loader upgrades opset 10 where it can; where it can't, the fusion meets this form.
    proto = onnx.parser.parse_model(
        '<ir_version: 5, opset_import: ["" : 10]>\n'
        + text(pad="Pad <pads = [0, 0, 1, 2, 0, 0, 3, 4], value = 0.0> (x)")
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(1, 8, 4, 3, 3), "weight"))
    graph = Graph(ir.serde.deserialize_model(proto))
    (stage,) = Pipeline([PadConv()]).run(graph)
    assert stage.report.changed == 1
    (conv,) = graph.nodes()
    assert graph.attribute(conv, "pads") == (1, 2, 3, 4)


@given(
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
    st.sampled_from(["conv", "average"]),
)
@settings(max_examples=30, deadline=None)
def test_any_pads(outer: list[int], own: list[int], kind: str) -> None:
    reader = f"Conv <pads = {own}, dilations = [2, 1]> (y, weight)"
    if kind == "average":
        reader = f"AveragePool <kernel_shape = [5, 5], pads = {own}, count_include_pad = 1> (y)"
    proto = model(text(reader), arrays(0, 0, *outer[:2], 0, 0, *outer[2:]))
    check_fires(PadConv(), proto, changed=1)


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("strides", ["[1, 1]", "[2, 3]"])
def test_average_pool_counts_what_the_pad_added(include: int, strides: str) -> None:
    reader = AVERAGE.replace("<", f"<count_include_pad = {include}, strides = {strides}, ")
    proto = model(text(reader), arrays(0, 0, 1, 2, 0, 0, 2, 1))
    result = check_fires(PadConv(), proto, changed=1)
    assert attribute(result, "AveragePool", "count_include_pad") == 1


def test_refuses_an_average_pool_with_padding_that_does_not_count() -> None:
    reader = AVERAGE.replace("<", "<pads = [1, 0, 0, 0], ")
    check_stays(PadConv(), model(text(reader), arrays(0, 0, 0, 1, 0, 0, 0, 0)), "does not count")


@pytest.mark.parametrize("own", [[0, 0, 0, 0], [1, 0, 0, 1]])
def test_max_pool_with_minus_infinity(own: list[int]) -> None:
    reader = MAX.replace("<", f"<pads = {own}, strides = [2, 2], ")
    proto = model(
        text(reader, "Pad (x, pads, low)"), arrays(0, 0, 1, 1, 0, 0, 1, 1, low=np.array(LOW))
    )
    check_fires(PadConv(), proto, changed=1)


@pytest.mark.parametrize("before", ["Relu (x)", "Sigmoid (x)", "Clip (x, low, high)", "Exp (x)"])
def test_max_pool_with_zero_behind_what_is_never_negative(before: str) -> None:
    body = text(MAX, "Pad (u, pads)").replace("{", f"{{ u = {before}\n", 1)
    bounds = {"low": np.float32(0), "high": np.float32(6)}
    proto = model(body, arrays(0, 0, 1, 1, 0, 0, 1, 1, **bounds))
    check_fires(PadConv(), proto, changed=1)


@pytest.mark.parametrize("before", ["Tanh (x)", "Clip (x, low, high)", "Clip (x, , high)"])
def test_refuses_max_pool_with_zero_behind_what_may_be_negative(before: str) -> None:
    body = text(MAX, "Pad (u, pads)").replace("{", f"{{ u = {before}\n", 1)
    bounds = {"low": np.float32(-1), "high": np.float32(6)}
    proto = model(body, arrays(0, 0, 1, 1, 0, 0, 1, 1, **bounds))
    check_stays(PadConv(), proto, "minus infinity")


@pytest.mark.parametrize("value", [np.finfo(np.float32).min, 0.0, 1.0])
def test_refuses_max_pool_with_another_value(value: float) -> None:
    low = np.array(value, np.float32)
    proto = model(text(MAX, "Pad (x, pads, low)"), arrays(0, 0, 1, 1, 0, 0, 1, 1, low=low))
    check_stays(PadConv(), proto, "minus infinity")


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("ceil_mode = 1, strides = [2, 2]", "ceil_mode"),
        ("dilations = [2, 2]", "dilation"),
        ("pads = [2, 0, 0, 0]", "as wide as the kernel"),
    ],
)
@pytest.mark.parametrize("reader", [AVERAGE, MAX])
def test_refuses_windows_that_could_lie_outside(extra: str, reason: str, reader: str) -> None:
    low = np.array(LOW if "Max" in reader else 0, np.float32)
    reader = reader.replace("<", f"<{extra}, ")
    if "Average" in reader:
        reader = reader.replace("<", "<count_include_pad = 1, ")
    proto = model(text(reader, "Pad (x, pads, low)"), arrays(0, 0, 1, 1, 0, 0, 1, 1, low=low))
    check_stays(PadConv(), proto, reason)


@pytest.mark.parametrize("reader", [CONV, AVERAGE])
def test_refuses_another_value(reader: str) -> None:
    value = np.array(1, np.float32)
    proto = model(text(reader, "Pad (x, pads, v)"), arrays(0, 0, 1, 1, 0, 0, 1, 1, v=value))
    check_stays(PadConv(), proto, "the Pad with 1")


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_refuses_other_modes(mode: str) -> None:
    proto = model(text(pad=f'Pad <mode = "{mode}"> (x, pads)'), arrays(0, 0, 1, 1, 0, 0, 1, 1))
    check_stays(PadConv(), proto, "mode is not constant")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((0, 0, -1, 1, 0, 0, 1, 1), "negative"),
        ((1, 0, 1, 1, 0, 0, 1, 1), "batch or the channels"),
        ((0, 0, 1, 1, 1, 0, 1, 1), "batch or the channels"),
    ],
)
def test_refuses_other_pads(values: tuple[int, ...], reason: str) -> None:
    check_stays(PadConv(), model(text(), arrays(*values)), reason)


def test_refuses_padded_channels() -> None:
    proto = model(text(), {"weight": normal(1, 8, 5, 3, 3), "pads": pads(0, 1, 0, 0, 0, 0, 0, 0)})
    check_stays(PadConv(), proto, "batch or the channels")


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
def test_refuses_auto_pad_same(auto: str) -> None:
    proto = model(text(f'Conv <auto_pad = "{auto}"> (y, weight)'), arrays(0, 0, 1, 1, 0, 0, 1, 1))
    check_stays(PadConv(), proto, "depends on the padded size")


@pytest.mark.parametrize(
    ("inputs", "pad", "reason"),
    [
        ("int64[8] p", "Pad (x, p)", "pads are not constant"),
        ("float v", "Pad (x, pads, v)", "padded value is not constant"),
        ("int64[4] a", "Pad (x, pads, , a)", "axes are not constant"),
    ],
)
def test_refuses_what_is_computed(inputs: str, pad: str, reason: str) -> None:
    body = text(pad=pad).replace("x)", f"x, {inputs})", 1)
    check_stays(PadConv(), model(body, arrays(0, 0, 1, 1, 0, 0, 1, 1)), reason)


def test_a_second_reader_stays() -> None:
    head = "g (float[2,4,10,9] x) => (float[p,q,r,s] z, float[a,b,c,d] w)"
    body = f"{{ y = Pad (x, pads)\n z = {CONV}\n w = Relu (y) }}"
    check_stays(PadConv(), model(head + body, arrays(0, 0, 1, 1, 0, 0, 1, 1)))


def test_a_graph_output_inside_stays() -> None:
    head = "g (float[2,4,10,9] x) => (float[p,q,r,s] z, float[a,b,c,d] y)"
    body = f"{{ y = Pad (x, pads)\n z = {CONV} }}"
    check_stays(PadConv(), model(head + body, arrays(0, 0, 1, 1, 0, 0, 1, 1)))


def test_conv_transpose_stays() -> None:
    proto = model(
        text("ConvTranspose (y, weight)"),
        {"weight": normal(1, 4, 8, 3, 3), "pads": pads(0, 0, 1, 1, 0, 0, 1, 1)},
    )
    check_stays(PadConv(), proto)


def test_dynamic_shapes_and_float16() -> None:
    half = {"weight": normal(1, 8, 4, 3, 3, dtype=np.float16)}
    proto = model(
        text(shape="N,4,H,W").replace("float[", "float16["),
        {**arrays(0, 0, 1, 0, 0, 0, 1, 2), **half},
    )
    feeds = {"x": normal(3, 3, 4, 8, 7, dtype=np.float16)}
    check_fires(PadConv(), proto, feeds=feeds, rtol=2e-3)


def test_weights_shared_with_another_conv() -> None:
    head = "g (float[2,4,10,9] x) => (float[p,q,r,s] z, float[a,b,c,d] w)"
    body = f"{{ y = Pad (x, pads)\n z = {CONV}\n w = Conv (x, weight) }}"
    check_fires(PadConv(), model(head + body, arrays(0, 0, 1, 1, 0, 0, 1, 1)), changed=1)
