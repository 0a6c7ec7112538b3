"""A constant scalar in front of MatMul and Gemm."""

import numpy as np
import pytest
from folds import constants, normal
from harness import apply, check_fires, check_stays, model, ops
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.fusions.scale_matmul import ScaleMatMul

FORMS = ["Mul (x, c)", "Mul (c, x)", "Div (x, c)"]
ARRAYS = {"weight": normal(1, 5, 4), "bias": normal(2, 4), "c": np.float32(0.3)}


def text(
    scale: str, linear: str = "MatMul (y, weight)", shape: str = "3,5", out: str = "p,q"
) -> str:
    return f"g (float[{shape}] x) => (float[{out}] z) {{ y = {scale}\n z = {linear} }}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "linear",
    [
        "MatMul (y, weight)",
        "Gemm (y, weight, bias)",
        "Gemm <alpha = 0.5, beta = 2.0> (y, weight, bias)",
        "Gemm (y, weight)",
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_fires(form: str, linear: str, shape: tuple[int, ...]) -> None:
    proto = model(text(form, linear), {**ARRAYS, "c": np.full(shape, 0.3, np.float32)})
    assert len(ops(check_fires(ScaleMatMul(), proto, changed=1))) == 1


def test_transposed_operands() -> None:
    body = text("Mul (x, c)", "Gemm <transA = 1, transB = 1> (y, weight, bias)", "5,3")
    check_fires(ScaleMatMul(), model(body, {**ARRAYS, "weight": normal(1, 4, 5)}), changed=1)


def test_batched_weights_and_dynamic_shapes() -> None:
    body = text("Mul (x, c)", shape="2,N,5", out="p,q,r")
    proto = model(body, {**ARRAYS, "weight": normal(1, 2, 5, 4)})
    check_fires(ScaleMatMul(), proto, changed=1)


@given(st.floats(0.01, 100), st.booleans(), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_arithmetic_is_that_of_float64(c: float, divide: bool, rows: int, columns: int) -> None:
    weight = normal(1, rows, columns, dtype=np.float64)
    proto = model(
        f"""g (double[n,{rows}] x) => (double[n,{columns}] z) {{
            y = {"Div" if divide else "Mul"} (x, c)
            z = MatMul (y, weight) }}""",
        {"weight": weight, "c": np.array(c)},
    )
    result, _, _ = apply(ScaleMatMul(), proto)
    (got,) = constants(result).values()
    np.testing.assert_allclose(got, weight / c if divide else weight * c, rtol=1e-15)


def test_a_shared_weight_is_copied() -> None:
    proto = model(
        """g (float[3,5] x) => (float[p,q] z, float[r,s] w) {
            y = Mul (x, c)\n z = MatMul (y, weight)\n w = MatMul (x, weight) }""",
        ARRAYS,
    )
    table = constants(check_fires(ScaleMatMul(), proto, changed=1))
    np.testing.assert_array_equal(table["weight"], ARRAYS["weight"])


def test_weight_behind_transpose() -> None:
    body = text("Mul (x, c)").replace("{", "{ weight = Transpose (stored)\n", 1)
    arrays = {"stored": normal(1, 4, 5), "c": ARRAYS["c"]}
    check_fires(ScaleMatMul(), model(body, arrays), changed=1)


def test_one_value_a_feature_is_no_case() -> None:
    arrays = {**ARRAYS, "c": normal(3, 5)}
    (report,) = check_stays(ScaleMatMul(), model(text("Mul (x, c)"), arrays))
    assert not report.refused


def test_computed_weights_are_no_case() -> None:
    body = text("Mul (x, c)").replace("x)", "x, float[5,4] weight)", 1)
    (report,) = check_stays(ScaleMatMul(), model(body, {"c": ARRAYS["c"]}))
    assert not report.refused


def test_a_weight_on_the_left_stays() -> None:
    body = text("Mul (x, c)", "MatMul (weight, y)", "4,3")
    check_stays(ScaleMatMul(), model(body, ARRAYS))


def test_a_constant_divided_by_the_input_stays() -> None:
    check_stays(ScaleMatMul(), model(text("Div (c, x)"), ARRAYS))


def test_refuses_division_by_zero() -> None:
    arrays = {**ARRAYS, "c": np.float32(0)}
    check_stays(ScaleMatMul(), model(text("Div (x, c)"), arrays), "divides by zero")


def test_refuses_more_axes() -> None:
    arrays = {**ARRAYS, "c": np.ones((1, 1, 1), np.float32)}
    check_stays(ScaleMatMul(), model(text("Mul (x, c)", out="p,q,r"), arrays), "may add axes")


@pytest.mark.parametrize("out", ["w", "y"])
def test_a_second_reader_stays(out: str) -> None:
    head = f"g (float[3,5] x) => (float[p,q] z, float[r,s] {out})"
    body = "{ y = Mul (x, c)\n z = MatMul (y, weight)\n w = Relu (y) }"
    check_stays(ScaleMatMul(), model(head + body, ARRAYS))


def test_float16() -> None:
    half = {k: v.astype(np.float16) for k, v in ARRAYS.items()}
    body = text("Mul (x, c)", "Gemm (y, weight, bias)").replace("float[", "float16[")
    table = constants(check_fires(ScaleMatMul(), model(body, half), rtol=3e-3))
    assert all(each.dtype == np.float16 for each in table.values())


def test_refuses_what_float16_can_not_hold() -> None:
    half = {k: v.astype(np.float16) for k, v in {**ARRAYS, "c": np.float32(1e-6)}.items()}
    proto = model(text("Mul (x, c)").replace("float[", "float16["), half)
    check_stays(ScaleMatMul(), proto, "overflow or underflow")
