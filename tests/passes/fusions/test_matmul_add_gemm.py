"""MatMul + Add becomes Gemm where the rank allows."""

import numpy as np
import pytest
from folds import constants, normal
from harness import apply, check_fires, check_stays, model, ops
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.fusions.matmul_add_gemm import MatMulAddGemm

ARRAYS = {"weight": normal(1, 5, 4), "bias": normal(2, 4)}


def text(
    add: str = "Add (y, bias)",
    product: str = "MatMul (x, weight)",
    shape: str = "3,5",
    out: str = "p,q",
) -> str:
    return f"g (float[{shape}] x) => (float[{out}] z) {{ y = {product}\n z = {add} }}"


@pytest.mark.parametrize("add", ["Add (y, bias)", "Add (bias, y)"])
@pytest.mark.parametrize("product", ["MatMul (x, weight)", "Gemm (x, weight)"])
@pytest.mark.parametrize("bias", [(4,), (1, 4), (1,), (), (1, 1)])
def test_fires(add: str, product: str, bias: tuple[int, ...]) -> None:
    proto = model(text(add, product), {**ARRAYS, "bias": normal(2, *bias)})
    result = check_fires(MatMulAddGemm(), proto, changed=1)
    assert ops(result) == ["Gemm"]
    assert sorted(c.shape for c in constants(result).values()) == [(4,), (5, 4)]


def test_gemm_keeps_its_transposes() -> None:
    product = "Gemm <transA = 1, transB = 1, alpha = 0.5> (x, weight)"
    proto = model(text(product=product, shape="5,3"), {**ARRAYS, "weight": normal(1, 4, 5)})
    check_fires(MatMulAddGemm(), proto, changed=1)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_size(rows: int, inner: int, columns: int, scalar: bool) -> None:
    arrays = {"weight": normal(1, inner, columns), "bias": normal(2, 1 if scalar else columns)}
    proto = model(text(shape=f"{rows},{inner}"), arrays)
    result, reports, _ = apply(MatMulAddGemm(), proto)
    assert reports[0].changed == 1
    x = normal(3, rows, inner).astype(np.float64)
    want = x @ arrays["weight"].astype(np.float64) + arrays["bias"]
    table = constants(result)
    weight, bias = (table[name] for name in result.graph.node[0].input[1:])
    assert bias.shape == (columns,)
    np.testing.assert_allclose(x @ weight.astype(np.float64) + bias, want, rtol=1e-12)


def test_dynamic_batch() -> None:
    check_fires(MatMulAddGemm(), model(text(shape="N,5"), ARRAYS), changed=1)


def test_the_rank_of_the_output_will_do() -> None:
    body = "g (float[3,5] x) => (float[p,q] z) { u = Relu (x)\n y = MatMul (u, weight)\n"
    check_fires(MatMulAddGemm(), model(body + " z = Add (y, bias) }", ARRAYS), changed=1)


def test_weight_behind_transpose_becomes_a_constant() -> None:
    body = text().replace("{", "{ weight = Transpose (stored)\n", 1)
    proto = model(body, {"stored": normal(1, 4, 5), "bias": ARRAYS["bias"]})
    check_fires(MatMulAddGemm(), proto, changed=1)


def test_shared_constants() -> None:
    proto = model(
        """g (float[3,5] x) => (float[p,q] z, float[r,s] w) {
            y = MatMul (x, weight)\n z = Add (y, bias)
            v = MatMul (x, weight)\n w = Add (v, bias) }""",
        ARRAYS,
    )
    result = check_fires(MatMulAddGemm(), proto, changed=2)
    assert len(result.graph.initializer) == 2, "nothing changed, so nothing need be copied"


@pytest.mark.parametrize(("shape", "out", "axes"), [("2,3,5", "p,q,r", "3"), ("5", "p", "1")])
def test_refuses_other_ranks(shape: str, out: str, axes: str) -> None:
    check_stays(MatMulAddGemm(), model(text(shape=shape, out=out), ARRAYS), f"has {axes} axes")


def test_refuses_an_unknown_rank() -> None:
    body = """g (float[3,5] x) => (float[p,q] z) {
        u = Relu (x)\n y = MatMul (u, weight)\n v = Add (y, bias)\n z = Relu (v) }"""
    check_stays(MatMulAddGemm(), model(body, ARRAYS), "unknown number of axes")


@pytest.mark.parametrize("bias", [(3, 1), (3, 4), (1, 1, 4)])
def test_refuses_other_axes(bias: tuple[int, ...]) -> None:
    body = text(out="p,q,r" if len(bias) == 3 else "p,q")
    check_stays(MatMulAddGemm(), model(body, {**ARRAYS, "bias": normal(2, *bias)}), "one value")


def test_refuses_a_bias_that_makes_the_result_wider() -> None:
    arrays = {"weight": normal(1, 5, 1), "bias": normal(2, 4)}
    check_stays(MatMulAddGemm(), model(text(), arrays), "one value a column")


def test_refuses_batched_weights() -> None:
    arrays = {**ARRAYS, "weight": normal(1, 2, 5, 4)}
    check_stays(MatMulAddGemm(), model(text(shape="2,3,5", out="p,q,r"), arrays), "not a matrix")


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_what_is_computed_is_no_case(missing: str) -> None:
    kind = {"weight": "float[5,4]", "bias": "float[4]"}[missing]
    body = text().replace("x)", f"x, {kind} {missing})", 1)
    proto = model(body, {k: v for k, v in ARRAYS.items() if k != missing})
    (report,) = check_stays(MatMulAddGemm(), proto)
    assert not report.refused


def test_a_gemm_with_a_bias_is_no_case() -> None:
    check_stays(MatMulAddGemm(), model(text(product="Gemm (x, weight, bias)"), ARRAYS))


@pytest.mark.parametrize("out", ["w", "y"])
def test_a_second_reader_stays(out: str) -> None:
    head = f"g (float[3,5] x) => (float[p,q] z, float[r,s] {out})"
    body = "{ y = MatMul (x, weight)\n z = Add (y, bias)\n w = Relu (y) }"
    check_stays(MatMulAddGemm(), model(head + body, ARRAYS))


def test_integers_stay() -> None:
    body = text().replace("float[", "int32[")
    arrays = {k: (v * 10).astype(np.int32) for k, v in ARRAYS.items()}
    check_stays(MatMulAddGemm(), model(body, arrays))


def test_float16() -> None:
    half = {k: v.astype(np.float16) for k, v in ARRAYS.items()}
    check_fires(MatMulAddGemm(), model(text().replace("float[", "float16["), half), rtol=2e-3)
