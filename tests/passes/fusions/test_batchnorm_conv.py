"""BatchNormalization + Conv folds exactly where padding would not show it."""

import numpy as np
import pytest
from folds import SPACE, column, constants, conv64, norm_parameters, normal, weights_of
from harness import apply, check_fires, check_stays, model, ops
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.fusions.batchnorm_conv import BatchNormConv

NORM = "BatchNormalization (x, scale, shift, mean, variance)"


def text(conv: str = "Conv (y, weight)", norm: str = NORM, shape: str = "2,4,10,9") -> str:
    return f"g (float[{shape}] x) => (float[a,b,c,d] z) {{ y = {norm}\n z = {conv} }}"


ARRAYS = {"weight": normal(1, 8, 4, 3, 3), **norm_parameters(4)}


def centred(channels: int) -> dict[str, np.ndarray]:
    """Statistics whose shift vanishes exactly."""
    zero = np.zeros(channels, np.float32)
    return {**norm_parameters(channels), "shift": zero, "mean": zero}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_fires_without_padding(rank: int, groups: int, bias: bool) -> None:
    out = ",".join("abcde"[: rank + 2])
    proto = model(
        f"""g (float[2,4,{SPACE[rank]}] x) => (float[{out}] z) {{
            y = {NORM}
            z = Conv <group = {groups}> (y, weight{", bias" if bias else ""}) }}""",
        {
            "weight": normal(1, 8, 4 // groups, *(3, 2, 2)[:rank]),
            **({"bias": normal(2, 8)} if bias else {}),
            **norm_parameters(4),
        },
    )
    assert ops(check_fires(BatchNormConv(), proto, changed=1)) == ["Conv"]


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_arithmetic_is_that_of_float64(
    rank: int, groups: int, inner: int, outer: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kernel = tuple(rng.integers(1, 4, rank))
    weight = rng.standard_normal((groups * outer, inner, *kernel))
    bias = rng.standard_normal(groups * outer)
    bn = norm_parameters(groups * inner, seed, np.float64)
    axes = ",".join("abcde"[: rank + 2])
    proto = model(
        f"g (double[{axes}] x) => (double[{axes}] z) {{ y = {NORM}\n"
        f" z = Conv <group = {groups}> (y, weight, bias) }}",
        {"weight": weight, "bias": bias, **bn},
    )
    result, reports, _ = apply(BatchNormConv(), proto)
    assert reports[0].changed == 1
    x = rng.standard_normal((2, groups * inner, *(5,) * rank))
    scale, shift, mean, variance = (column(bn[k], rank) for k in bn)
    y = (x - mean) / np.sqrt(variance + float(np.float32(1e-5))) * scale + shift
    want = conv64(y, weight, bias, groups=groups)
    got = conv64(x, *weights_of(result, "Conv"), groups=groups)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "conv",
    [
        "Conv <pads = [0, 0, 0, 0]> (y, weight)",
        'Conv <auto_pad = "VALID"> (y, weight)',
        'Conv <auto_pad = "NOTSET"> (y, weight)',
        "Conv <strides = [2, 2], dilations = [2, 1]> (y, weight)",
    ],
)
def test_ways_to_write_no_padding(conv: str) -> None:
    check_fires(BatchNormConv(), model(text(conv), ARRAYS), changed=1)


def test_auto_pad_same_with_a_one_element_kernel_does_not_pad() -> None:
    arrays = {**ARRAYS, "weight": normal(1, 8, 4, 1, 1)}
    conv = 'Conv <auto_pad = "SAME_UPPER", strides = [3, 2]> (y, weight)'
    check_fires(BatchNormConv(), model(text(conv), arrays), changed=1)


@pytest.mark.parametrize("pads", ["pads = [1, 1, 1, 1]", 'auto_pad = "SAME_LOWER"'])
def test_padding_is_fine_where_the_shift_vanishes(pads: str) -> None:
    arrays = {"weight": normal(1, 8, 4, 3, 3), **centred(4)}
    check_fires(BatchNormConv(), model(text(f"Conv <{pads}> (y, weight)"), arrays), changed=1)


@pytest.mark.parametrize("pads", ["pads = [0, 0, 0, 1]", 'auto_pad = "SAME_UPPER"'])
def test_refuses_padding(pads: str) -> None:
    check_stays(BatchNormConv(), model(text(f"Conv <{pads}> (y, weight)"), ARRAYS), "pads")


def test_float16() -> None:
    arrays = {k: v.astype(np.float16) for k, v in ARRAYS.items()}
    arrays["variance"][:] = 1  # small deviations are refused, below
    proto = model(text().replace("float[", "float16["), arrays)
    result = check_fires(BatchNormConv(), proto, rtol=4e-3)
    assert all(each.dtype == np.float16 for each in constants(result).values())


@pytest.mark.parametrize(("dtype", "mean"), [(np.float32, 2000.0), (np.float16, 20.0)])
def test_refuses_a_mean_that_would_cancel_late(dtype: type, mean: float) -> None:
    arrays = {k: v.astype(dtype) for k, v in ARRAYS.items()}
    arrays["variance"][:] = 1
    arrays["mean"][2] = mean
    kind = "float16[" if dtype is np.float16 else "float["
    proto = model(text().replace("float[", kind), arrays)
    check_stays(BatchNormConv(), proto, "mean is too far above")


def test_a_large_mean_that_is_let_through_stays_exact() -> None:
    arrays = {**ARRAYS, "mean": np.full(4, 500, np.float32), "variance": np.ones(4, np.float32)}
    x = normal(3, 2, 4, 10, 9) + 500
    check_fires(BatchNormConv(), model(text(), arrays), feeds={"x": x})


def test_a_shared_weight_is_copied() -> None:
    proto = model(
        f"""g (float[2,4,10,9] x) => (float[a,b,c,d] z, float[e,f,g,h] w) {{
            y = {NORM}\n z = Conv (y, weight)\n w = Conv (x, weight) }}""",
        ARRAYS,
    )
    result = check_fires(BatchNormConv(), proto, changed=1)
    np.testing.assert_array_equal(constants(result)["weight"], ARRAYS["weight"])


def test_weight_behind_transpose() -> None:
    arrays = {**norm_parameters(4), "stored": normal(1, 4, 8, 3, 3)}
    body = text().replace("{", "{ weight = Transpose <perm = [1, 0, 2, 3]> (stored)\n", 1)
    check_fires(BatchNormConv(), model(body, arrays), changed=1)


def test_dynamic_shapes() -> None:
    proto = model(text(shape="N,4,H,W"), ARRAYS)
    check_fires(BatchNormConv(), proto, feeds={"x": normal(3, 3, 4, 8, 7)})


def test_a_second_reader_stays() -> None:
    head = "g (float[2,4,10,9] x) => (float[a,b,c,d] z, float[e,f,g,h] w)"
    body = f"{{ y = {NORM}\n z = Conv (y, weight)\n w = Relu (y) }}"
    check_stays(BatchNormConv(), model(head + body, ARRAYS))


def test_a_graph_output_inside_stays() -> None:
    head = "g (float[2,4,10,9] x) => (float[a,b,c,d] z, float[e,f,g,h] y)"
    check_stays(BatchNormConv(), model(f"{head} {{ y = {NORM}\n z = Conv (y, weight) }}", ARRAYS))


@pytest.mark.parametrize("missing", ["weight", "bias", "variance"])
def test_refuses_what_is_computed(missing: str) -> None:
    arrays = {**ARRAYS, "bias": normal(2, 8)}
    kind = {"weight": "float[8,4,3,3]", "bias": "float[8]", "variance": "float[4]"}[missing]
    body = text("Conv (y, weight, bias)").replace("x)", f"x, {kind} {missing})", 1)
    proto = model(body, {k: v for k, v in arrays.items() if k != missing})
    check_stays(BatchNormConv(), proto, "is not a constant")


def test_refuses_training_mode() -> None:
    norm = NORM.replace(" (", " <training_mode = 1> (")
    proto = model(text(norm=norm).replace("y = Batch", "y, m2, v2 = Batch"), ARRAYS)
    check_stays(BatchNormConv(), proto, "training mode")


def test_conv_transpose_stays() -> None:
    arrays = {**ARRAYS, "weight": normal(1, 4, 8, 3, 3)}
    check_stays(BatchNormConv(), model(text("ConvTranspose (y, weight)"), arrays))
