"""Constant Mul and Div behind MatMul, MatMul + Add and Gemm."""

import numpy as np
import pytest
from folds import constants, normal
from harness import apply, check_fires, check_stays, model, ops
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.fusions.matmul_scale import MatMulScale

LINEAR = {
    "MatMul": "y = MatMul (x, weight)",
    "MatMul + Add": "m = MatMul (x, weight)\n y = Add (m, bias)",
    "Add + MatMul": "m = MatMul (x, weight)\n y = Add (bias, m)",
    "Gemm": "y = Gemm (x, weight, bias)",
    "Gemm without bias": "y = Gemm (x, weight)",
    "Gemm + Add": "m = Gemm (x, weight)\n y = Add (m, bias)",
    "Gemm with factors": "y = Gemm <alpha = 0.5, beta = 3.0> (x, weight, bias)",
}
FORMS = ["Mul (y, c)", "Mul (c, y)", "Div (y, c)"]
ARRAYS = {"weight": normal(1, 5, 4), "bias": normal(2, 4)}


def text(tail: str, linear: str = LINEAR["MatMul"], shape: str = "3,5", out: str = "p,q") -> str:
    return f"g (float[{shape}] x) => (float[{out}] z) {{ {linear}\n z = {tail} }}"


def operand(*shape: int) -> np.ndarray:
    return (np.abs(normal(5, *shape)) + 0.5).astype(np.float32)


@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 4), (1, 1)])
def test_fires(linear: str, form: str, shape: tuple[int, ...]) -> None:
    proto = model(text(form, LINEAR[linear]), {**ARRAYS, "c": operand(*shape)})
    result = check_fires(MatMulScale(), proto, changed=1)
    assert not {"Mul", "Div"} & set(ops(result))


@pytest.mark.parametrize("shape", [(), (4,), (1, 1, 4), (1, 1, 1)])
def test_fires_on_three_axes(shape: tuple[int, ...]) -> None:
    body = text("Mul (y, c)", LINEAR["MatMul + Add"], "N,3,5", "p,q,r")
    check_fires(MatMulScale(), model(body, {**ARRAYS, "c": operand(*shape)}), changed=1)


def test_fires_on_a_vector() -> None:
    body = text("Mul (y, c)", shape="5", out="p")
    check_fires(MatMulScale(), model(body, {**ARRAYS, "c": operand(4)}), changed=1)


def test_gemm_with_transposed_weight() -> None:
    body = text("Mul (y, c)", "y = Gemm <transB = 1> (x, weight, bias)")
    arrays = {**ARRAYS, "weight": normal(1, 4, 5), "c": operand(4)}
    check_fires(MatMulScale(), model(body, arrays), changed=1)


@pytest.mark.parametrize("bias", [(1,), (), (3, 4), (2, 1, 4), (1, 4)])
@pytest.mark.parametrize("shape", [(), (4,), (1, 4)])
def test_whatever_is_added_is_scaled_too(bias: tuple[int, ...], shape: tuple[int, ...]) -> None:
    out = "p,q,r" if len(bias) == 3 else "p,q"
    body = text("Mul (y, c)", LINEAR["MatMul + Add"], out=out)
    arrays = {**ARRAYS, "bias": normal(2, *bias), "c": operand(*shape)}
    check_fires(MatMulScale(), model(body, arrays), changed=1)


@given(
    st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1)
)
@settings(max_examples=40, deadline=None)
def test_arithmetic_is_that_of_float64(
    rows: int, columns: int, scalar: bool, divide: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((rows, columns)), rng.standard_normal(columns)
    c = rng.uniform(0.5, 2, () if scalar else columns)
    proto = model(
        f"""g (double[n,{rows}] x) => (double[n,{columns}] z) {{
            m = MatMul (x, weight)
            y = Add (m, bias)
            z = {"Div" if divide else "Mul"} (y, c) }}""",
        {"weight": weight, "bias": bias, "c": c},
    )
    result, reports, _ = apply(MatMulScale(), proto)
    assert reports[0].changed == 1
    table = constants(result)
    x = rng.standard_normal((3, rows))
    y = x @ weight + bias
    want = y / c if divide else y * c
    got = x @ table["weight_folded"] + table["bias_folded"]
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_a_shared_weight_is_copied() -> None:
    proto = model(
        """g (float[3,5] x) => (float[p,q] z, float[r,s] w) {
            y = MatMul (x, weight)\n z = Mul (y, c)\n w = MatMul (x, weight) }""",
        {**ARRAYS, "c": operand(4)},
    )
    table = constants(check_fires(MatMulScale(), proto, changed=1))
    np.testing.assert_array_equal(table["weight"], ARRAYS["weight"])


def test_a_shared_bias_is_copied() -> None:
    proto = model(
        """g (float[3,5] x) => (float[p,q] z, float[r,s] w) {
            m = MatMul (x, weight)\n y = Add (m, bias)\n z = Mul (y, c)
            k = MatMul (x, weight)\n w = Add (k, bias) }""",
        {**ARRAYS, "c": operand(4)},
    )
    table = constants(check_fires(MatMulScale(), proto, changed=1))
    np.testing.assert_array_equal(table["bias"], ARRAYS["bias"])


def test_weight_behind_transpose() -> None:
    body = text("Mul (y, c)", "weight = Transpose (stored)\n y = MatMul (x, weight)")
    check_fires(MatMulScale(), model(body, {"stored": normal(1, 4, 5), "c": operand(4)}), changed=1)


@pytest.mark.parametrize(
    ("shape", "columns"),
    [((3, 1), 4), ((3, 4), 4), ((1, 1, 4), 4), ((1, 1, 1), 4), ((4,), 1)],
)
def test_refuses_other_axes(shape: tuple[int, ...], columns: int) -> None:
    body = text("Mul (y, c)", out="p,q,r" if len(shape) == 3 else "p,q")
    arrays = {"weight": normal(1, 5, columns), "c": operand(*shape)}
    check_stays(MatMulScale(), model(body, arrays), "not one element or one value a column")


@pytest.mark.parametrize(("shape", "fires"), [((4,), True), ((), True), ((1, 4), False)])
def test_unknown_rank(shape: tuple[int, ...], fires: bool) -> None:
    body = "g (float[3,5] x) => (float[p,q] z) { u = Relu (x)\n y = MatMul (u, weight)\n"
    proto = model(body + " z = Mul (y, c) }", {**ARRAYS, "c": operand(*shape)})
    if fires:
        check_fires(MatMulScale(), proto, changed=1)
    else:
        check_stays(MatMulScale(), proto, "one value a column")


def test_refuses_division_by_zero() -> None:
    arrays = {**ARRAYS, "c": np.array([1, 2, 0, 4], np.float32)}
    check_stays(MatMulScale(), model(text("Div (y, c)"), arrays), "divides by zero")


def test_a_constant_divided_by_the_result_stays() -> None:
    check_stays(MatMulScale(), model(text("Div (c, y)"), {**ARRAYS, "c": operand(4)}))


def test_two_activations_are_no_case() -> None:
    body = text("Mul (y, c)").replace("x)", "x, float[5,4] weight)", 1)
    (report,) = check_stays(MatMulScale(), model(body, {"c": operand(4)}))
    assert not report.refused


def test_refuses_batched_weights() -> None:
    body = text("Mul (y, c)", shape="2,3,5", out="p,q,r")
    arrays = {"weight": normal(1, 2, 5, 4), "c": operand(4)}
    check_stays(MatMulScale(), model(body, arrays), "not a matrix")


@pytest.mark.parametrize("out", ["w", "y"])
def test_a_second_reader_stays(out: str) -> None:
    head = f"g (float[3,5] x) => (float[p,q] z, float[r,s] {out})"
    body = "{ y = MatMul (x, weight)\n z = Mul (y, c)\n w = Relu (y) }"
    check_stays(MatMulScale(), model(head + body, {**ARRAYS, "c": operand(4)}))


def test_float16() -> None:
    half = {k: v.astype(np.float16) for k, v in {**ARRAYS, "c": operand(4)}.items()}
    body = text("Mul (y, c)", LINEAR["MatMul + Add"]).replace("float[", "float16[")
    table = constants(check_fires(MatMulScale(), model(body, half), rtol=3e-3))
    assert all(each.dtype == np.float16 for each in table.values())
