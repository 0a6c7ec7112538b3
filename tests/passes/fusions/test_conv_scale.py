"""Constant Mul, Add, Sub and Div behind Conv, ConvTranspose and BatchNormalization."""

import numpy as np
import pytest
from folds import SPACE, constants, conv64, norm_parameters, normal, only_node, weights_of
from harness import apply, check_fires, check_stays, model, ops
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.fusions.conv_batchnorm import ConvBatchNorm
from qgraph.passes.fusions.conv_scale import ConvScale

FORMS = [
    "Mul (y, c)",
    "Mul (c, y)",
    "Add (y, c)",
    "Add (c, y)",
    "Sub (y, c)",
    "Sub (c, y)",
    "Div (y, c)",
]


def text(tail: str, conv: str = "Conv (x, weight)", shape: str = "2,4,10,9") -> str:
    return f"g (float[{shape}] x) => (float[p,q,r,s] z) {{ y = {conv}\n z = {tail} }}"


def operand(*shape: int) -> np.ndarray:
    return (np.abs(normal(5, *shape)) + 0.5).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(), (1,), (8, 1, 1), (1, 8, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_fires(form: str, shape: tuple[int, ...], bias: bool) -> None:
    conv = "Conv (x, weight, bias)" if bias else "Conv (x, weight)"
    arrays = {"weight": normal(1, 8, 4, 3, 3), "c": operand(*shape)}
    proto = model(text(form, conv), {**arrays, **({"bias": normal(2, 8)} if bias else {})})
    result = check_fires(ConvScale(), proto, changed=1)
    assert ops(result) == ["Conv"]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_fires_on_conv_transpose(rank: int, groups: int, form: str) -> None:
    out = ",".join("pqrst"[: rank + 2])
    proto = model(
        f"""g (float[2,4,{SPACE[rank]}] x) => (float[{out}] z) {{
            y = ConvTranspose <group = {groups}> (x, weight)
            z = {form} }}""",
        {
            "weight": normal(1, 4, 3, *(3, 2, 2)[:rank]),
            "c": operand(3 * groups, *(1,) * rank),
        },
    )
    assert ops(check_fires(ConvScale(), proto, changed=1)) == ["ConvTranspose"]


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from(FORMS),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_arithmetic_is_that_of_float64(
    rank: int,
    groups: int,
    inner: int,
    outer: int,
    transposed: bool,
    scalar: bool,
    form: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    kernel = tuple(rng.integers(1, 4, rank))
    shape = (groups * inner, outer) if transposed else (groups * outer, inner)
    weight, bias = rng.standard_normal((*shape, *kernel)), rng.standard_normal(groups * outer)
    c = rng.uniform(0.5, 2, () if scalar else (groups * outer, *(1,) * rank))
    kind = "ConvTranspose" if transposed else "Conv"
    axes = ",".join("pqrst"[: rank + 2])
    proto = model(
        f"g (double[{axes}] x) => (double[{axes}] z) {{ y = {kind} <group = {groups}>"
        f" (x, weight, bias)\n z = {form} }}",
        {"weight": weight, "bias": bias, "c": c},
    )
    result, reports, _ = apply(ConvScale(), proto)
    assert reports[0].changed == 1
    x = rng.standard_normal((2, groups * inner, *(5,) * rank))
    y = conv64(x, weight, bias, groups=groups, transposed=transposed)
    name, _, order = form.partition(" ")
    function = {"Mul": np.multiply, "Add": np.add, "Sub": np.subtract, "Div": np.divide}[name]
    want = function(c, y) if order == "(c, y)" else function(y, c)
    got = conv64(x, *weights_of(result, kind), groups=groups, transposed=transposed)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


def test_adding_leaves_the_weight_alone() -> None:
    proto = model(text("Add (y, c)"), {"weight": normal(1, 8, 4, 3, 3), "c": operand(8, 1, 1)})
    result = check_fires(ConvScale(), proto)
    assert only_node(result, "Conv").input[1] == "weight"


def test_a_chain_with_a_norm_in_it_ends_in_one_conv() -> None:
    proto = model(
        """g (float[2,4,10,9] x) => (float[p,q,r,s] z) {
            a = Conv (x, weight)
            b = Mul (a, c)
            d = Sub (c, b)
            e = BatchNormalization (d, scale, shift, mean, variance)
            f = Div (e, c)
            z = Add (c, f) }""",
        {"weight": normal(1, 8, 4, 3, 3), "c": operand(8, 1, 1), **norm_parameters(8)},
    )
    # The norm's rank is unknown without shape inference, so its tail folds after it.
    result = check_fires([ConvScale(), ConvBatchNorm(), ConvScale()], proto)
    assert ops(result) == ["Conv"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(), (4, 1, 1)])
def test_fires_on_a_norm(form: str, shape: tuple[int, ...]) -> None:
    norm = "BatchNormalization (x, scale, shift, mean, variance)"
    proto = model(text(form, norm), {"c": operand(*shape), **norm_parameters(4)})
    assert ops(check_fires(ConvScale(), proto, changed=1)) == ["BatchNormalization"]


def test_refuses_a_norm_of_unknown_rank() -> None:
    proto = model(
        """g (float[2,4,10,9] x) => (float[p,q,r,s] z) {
            u = Relu (x)
            y = BatchNormalization (u, scale, shift, mean, variance)
            z = Mul (y, c) }""",
        {"c": operand(4, 1, 1), **norm_parameters(4)},
    )
    check_stays(ConvScale(), proto, "not one element or one value a channel")


def test_refuses_a_norm_in_training() -> None:
    proto = model(
        """g (float[2,4,10,9] x) => (float[p,q,r,s] z) {
            y, m2, v2 = BatchNormalization <training_mode = 1> (x, scale, shift, mean, variance)
            z = Mul (y, c) }""",
        {"c": operand(4, 1, 1), **norm_parameters(4)},
    )
    check_stays(ConvScale(), proto, "training mode")


@pytest.mark.parametrize(
    "shape",
    [
        (8,),  # along the last axis
        (1, 8),
        (1, 1, 8),
        (8, 8),
        (8, 8, 1),  # along height too
        (2, 1, 1, 1),  # along the batch
        (2, 8, 1, 1),
        (1, 1, 8, 1, 1),  # adds an axis
        (1, 1, 1, 1, 1),
    ],
)
def test_refuses_other_axes(shape: tuple[int, ...]) -> None:
    # The convolution gives [2, 8, 8, 8], so only the place of the 8 tells the axes apart.
    body = text("Mul (y, c)", shape="2,4,10,10")
    if len(shape) == 5:
        body = body.replace("[p,q,r,s]", "[p,q,r,s,t]")
    proto = model(body, {"weight": normal(1, 8, 4, 3, 3), "c": operand(*shape)})
    check_stays(ConvScale(), proto, "not one element or one value a channel")


def test_refuses_an_operand_that_makes_the_channels_longer() -> None:
    arrays = {"weight": normal(1, 1, 4, 3, 3), "c": operand(8, 1, 1)}
    check_stays(ConvScale(), model(text("Mul (y, c)"), arrays), "one value a channel")


def test_refuses_a_constant_divided_by_the_result() -> None:
    arrays = {"weight": normal(1, 8, 4, 3, 3), "c": operand(8, 1, 1)}
    check_stays(ConvScale(), model(text("Div (c, y)"), arrays), "divides a constant")


def test_refuses_division_by_zero() -> None:
    arrays = {"weight": normal(1, 8, 4, 3, 3), "c": np.zeros((), np.float32)}
    check_stays(ConvScale(), model(text("Div (y, c)"), arrays), "divides by zero")


def test_refuses_an_infinite_operand() -> None:
    arrays = {"weight": normal(1, 8, 4, 3, 3), "c": np.float32(np.inf)}
    check_stays(ConvScale(), model(text("Mul (y, c)"), arrays), "overflow")


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_refuses_computed_weights(missing: str) -> None:
    arrays = {"weight": normal(1, 8, 4, 3, 3), "bias": normal(2, 8), "c": operand(8, 1, 1)}
    kind = {"weight": "float[8,4,3,3]", "bias": "float[8]"}[missing]
    body = text("Mul (y, c)", "Conv (x, weight, bias)").replace("x)", f"x, {kind} {missing})", 1)
    proto = model(body, {k: v for k, v in arrays.items() if k != missing})
    check_stays(ConvScale(), proto, "is not a constant")


def test_a_residual_is_no_case() -> None:
    body = text("Add (y, x)", "Conv <pads = [1, 1, 1, 1]> (x, weight)")
    (report,) = check_stays(ConvScale(), model(body, {"weight": normal(1, 4, 4, 3, 3)}))
    assert not report.refused


@pytest.mark.parametrize("extra", ["w = Relu (y)", "w = Mul (y, c)"])
def test_a_second_reader_stays(extra: str) -> None:
    head = "g (float[2,4,10,9] x) => (float[p,q,r,s] z, float[a,b,c2,d] w)"
    body = f"{{ y = Conv (x, weight)\n z = Mul (y, c)\n {extra} }}"
    arrays = {"weight": normal(1, 8, 4, 3, 3), "c": operand(8, 1, 1)}
    check_stays(ConvScale(), model(head + body, arrays))


def test_a_graph_output_inside_stays() -> None:
    head = "g (float[2,4,10,9] x) => (float[p,q,r,s] z, float[a,b,c2,d] y)"
    arrays = {"weight": normal(1, 8, 4, 3, 3), "c": operand(8, 1, 1)}
    check_stays(ConvScale(), model(head + "{ y = Conv (x, weight)\n z = Mul (y, c) }", arrays))


def test_shared_constants_are_copied() -> None:
    weight, bias = normal(1, 8, 4, 3, 3), normal(2, 8)
    proto = model(
        """g (float[2,4,10,9] x) => (float[p,q,r,s] z, float[a,b,c2,d] w) {
            y = Conv (x, weight, bias)
            z = Mul (y, c)
            w = Conv (x, weight, bias) }""",
        {"weight": weight, "bias": bias, "c": operand(8, 1, 1)},
    )
    result = constants(check_fires(ConvScale(), proto, changed=1))
    np.testing.assert_array_equal(result["weight"], weight)
    np.testing.assert_array_equal(result["bias"], bias)


def test_float16() -> None:
    arrays = {"weight": normal(1, 8, 4, 3, 3), "bias": normal(2, 8), "c": operand(8, 1, 1)}
    body = text("Mul (y, c)", "Conv (x, weight, bias)").replace("float[", "float16[")
    proto = model(body, {k: v.astype(np.float16) for k, v in arrays.items()})
    result = check_fires(ConvScale(), proto, rtol=2e-3)
    assert all(each.dtype == np.float16 for each in constants(result).values())


def test_dynamic_shapes() -> None:
    proto = model(
        text("Sub (c, y)", shape="N,4,H,W"),
        {"weight": normal(1, 8, 4, 3, 3), "c": operand(8, 1, 1)},
    )
    check_fires(ConvScale(), proto, feeds={"x": normal(3, 3, 4, 8, 7)})
