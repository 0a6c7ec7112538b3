"""Gemm's alpha and beta go into its constants."""

import numpy as np
import pytest
from folds import constants, normal, only_node
from harness import apply, check_fires, check_stays, model
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.fusions.gemm_factors import GemmFactors


def text(attributes: str, inputs: str = "x, weight, bias", shape: str = "3,5") -> str:
    return f"g (float[{shape}] x) => (float[p,q] z) {{ z = Gemm <{attributes}> ({inputs}) }}"


ARRAYS = {"weight": normal(1, 5, 4), "bias": normal(2, 4)}


def factors(proto: object) -> dict[str, float]:
    node = only_node(proto, "Gemm")  # type: ignore[arg-type]
    return {a.name: a.f for a in node.attribute if a.name in {"alpha", "beta"}}


@pytest.mark.parametrize("attributes", ["alpha = 0.3", "beta = 1.7", "alpha = -2.0, beta = 0.25"])
@pytest.mark.parametrize("bias", [(4,), (1, 4), (3, 4), (3, 1), ()])
def test_fires(attributes: str, bias: tuple[int, ...]) -> None:
    proto = model(text(attributes), {**ARRAYS, "bias": normal(2, *bias)})
    assert factors(check_fires(GemmFactors(), proto, changed=1)) == {}


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_transposes_stay(trans_a: int, trans_b: int) -> None:
    shape = "5,3" if trans_a else "3,5"
    weight = normal(1, 4, 5) if trans_b else normal(1, 5, 4)
    attributes = f"alpha = 0.3, beta = 0.7, transA = {trans_a}, transB = {trans_b}"
    proto = model(text(attributes, shape=shape), {**ARRAYS, "weight": weight})
    node = only_node(check_fires(GemmFactors(), proto, changed=1), "Gemm")
    kept = {a.name: a.i for a in node.attribute}
    assert kept.get("transA", 0) == trans_a and kept.get("transB", 0) == trans_b


def test_a_constant_on_the_left() -> None:
    check_fires(GemmFactors(), model(text("alpha = 3.0", "weight, x", "4,3"), ARRAYS), changed=1)


def test_without_a_bias_beta_just_goes() -> None:
    proto = model(text("beta = 0.5", "x, weight"), ARRAYS)
    assert factors(check_fires(GemmFactors(), proto, changed=1)) == {}


def test_beta_zero_drops_the_bias() -> None:
    body = text("beta = 0.0").replace("x)", "x, float[4] bias)", 1)
    result = check_fires(GemmFactors(), model(body, {"weight": ARRAYS["weight"]}), changed=1)
    assert list(only_node(result, "Gemm").input)[:2] == ["x", "weight"]
    assert not any(only_node(result, "Gemm").input[2:])


@given(st.floats(-4, 4, width=32), st.floats(-4, 4, width=32), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_arithmetic_is_that_of_float64(alpha: float, beta: float, rows: int, columns: int) -> None:
    weight, bias = normal(1, rows, columns, dtype=np.float64), normal(2, columns, dtype=np.float64)
    proto = model(
        f"""g (double[n,{rows}] x) => (double[n,{columns}] z) {{
            z = Gemm <alpha = {alpha:.9f}, beta = {beta:.9f}> (x, weight, bias) }}""",
        {"weight": weight, "bias": bias},
    )
    alpha, beta = (float(np.float32(f"{each:.9f}")) for each in (alpha, beta))
    result, _, _ = apply(GemmFactors(), proto)
    table, names = constants(result), list(only_node(result, "Gemm").input)
    np.testing.assert_allclose(table[names[1]], weight * alpha, rtol=1e-15)
    got = table[names[2]] if len(names) > 2 and names[2] else np.zeros(columns)
    np.testing.assert_allclose(got, bias * beta, rtol=1e-15)


def test_shared_constants_are_copied() -> None:
    proto = model(
        """g (float[3,5] x) => (float[p,q] z, float[r,s] w) {
            z = Gemm <alpha = 0.3, beta = 0.5> (x, weight, bias)
            w = Gemm (x, weight, bias) }""",
        ARRAYS,
    )
    table = constants(check_fires(GemmFactors(), proto, changed=1))
    np.testing.assert_array_equal(table["weight"], ARRAYS["weight"])
    np.testing.assert_array_equal(table["bias"], ARRAYS["bias"])


def test_one_factor_folds_without_the_other() -> None:
    body = text("alpha = 0.3, beta = 0.5").replace("x)", "x, float[4] bias)", 1)
    result = check_fires(GemmFactors(), model(body, {"weight": ARRAYS["weight"]}), changed=1)
    assert factors(result) == {"beta": 0.5}


def test_refuses_computed_weights() -> None:
    body = text("alpha = 0.3").replace("x)", "x, float[5,4] weight)", 1)
    check_stays(GemmFactors(), model(body, {"bias": ARRAYS["bias"]}), "weight is not a constant")


def test_refuses_a_computed_bias() -> None:
    body = text("beta = 0.3").replace("x)", "x, float[4] bias)", 1)
    check_stays(GemmFactors(), model(body, {"weight": ARRAYS["weight"]}), "beta is not 1")


def test_nothing_to_do_is_no_refusal() -> None:
    (report,) = check_stays(GemmFactors(), model(text("transB = 0"), ARRAYS))
    assert not report.refused


def test_float16() -> None:
    half = {k: v.astype(np.float16) for k, v in ARRAYS.items()}
    body = text("alpha = 0.3, beta = 0.5").replace("float[", "float16[")
    table = constants(check_fires(GemmFactors(), model(body, half), rtol=2e-3))
    assert all(each.dtype == np.float16 for each in table.values())


def test_refuses_what_float16_can_not_hold() -> None:
    half = {k: v.astype(np.float16) for k, v in ARRAYS.items()}
    body = text("alpha = 100000.0").replace("float[", "float16[")
    check_stays(GemmFactors(), model(body, half), "overflow or underflow")
