"""Gemm, MatMul and MatMul + Add with BatchNormalization behind."""

import numpy as np
import pytest
from folds import constants, norm_parameters, normal, weights_of
from harness import apply, check_fires, check_stays, model, ops
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.fusions.gemm_factors import GemmFactors
from qgraph.passes.fusions.linear_batchnorm import LinearBatchNorm

NORM = "BatchNormalization (y, scale, shift, mean, variance)"
ARRAYS = {"weight": normal(1, 5, 4), "bias": normal(2, 4), **norm_parameters(4)}
LINEAR = {
    "MatMul": "y = MatMul (x, weight)",
    "MatMul + Add": "m = MatMul (x, weight)\n y = Add (m, bias)",
    "Add + MatMul": "m = MatMul (x, weight)\n y = Add (bias, m)",
    "Gemm": "y = Gemm (x, weight, bias)",
    "Gemm without bias": "y = Gemm (x, weight)",
    "Gemm + Add": "m = Gemm (x, weight)\n y = Add (m, bias)",
    "Gemm with bias + Add": "m = Gemm (x, weight, bias)\n y = Add (m, bias)",
}


def text(linear: str, norm: str = NORM, shape: str = "3,5", out: str = "p,q") -> str:
    return f"g (float[{shape}] x) => (float[{out}] z) {{ {linear}\n z = {norm} }}"


@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("shape", ["3,5", "N,5"])
def test_fires(linear: str, shape: str) -> None:
    proto = model(text(LINEAR[linear], shape=shape), ARRAYS)
    assert ops(check_fires(LinearBatchNorm(), proto, changed=1)) == ["Gemm"]


@pytest.mark.parametrize("bias", [(1, 4), (1,), ()])
def test_bias_shapes(bias: tuple[int, ...]) -> None:
    proto = model(text(LINEAR["Gemm"]), {**ARRAYS, "bias": normal(2, *bias)})
    check_fires(LinearBatchNorm(), proto, changed=1)


def test_transposes() -> None:
    linear = "y = Gemm <transA = 1, transB = 1> (x, weight, bias)"
    proto = model(text(linear, shape="5,3"), {**ARRAYS, "weight": normal(1, 4, 5)})
    check_fires(LinearBatchNorm(), proto, changed=1)


@given(
    st.integers(1, 5), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1)
)
@settings(max_examples=40, deadline=None)
def test_arithmetic_is_that_of_float64(
    rows: int, columns: int, transposed: bool, bias: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight, offset = rng.standard_normal((rows, columns)), rng.standard_normal(columns)
    bn = norm_parameters(columns, seed, np.float64)
    proto = model(
        f"""g (double[n,{rows}] x) => (double[n,{columns}] z) {{
            y = Gemm <transB = {int(transposed)}> (x, weight{", bias" if bias else ""})
            z = {NORM} }}""",
        {
            "weight": np.ascontiguousarray(weight.T) if transposed else weight,
            **({"bias": offset} if bias else {}),
            **bn,
        },
    )
    result, _, _ = apply(LinearBatchNorm(), proto)
    new_weight, new_bias = weights_of(result, "Gemm")
    x = rng.standard_normal((3, rows))
    y = x @ weight + (offset if bias else 0)
    scale, shift, mean, variance = bn.values()
    want = (y - mean) / np.sqrt(variance + float(np.float32(1e-5))) * scale + shift
    got = x @ (new_weight.T if transposed else new_weight) + new_bias
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


def test_factors_fold_first() -> None:
    body = text("y = Gemm <alpha = 0.5, beta = 2.0> (x, weight, bias)")
    check_stays(LinearBatchNorm(), model(body, ARRAYS), "alpha or beta other than 1")
    result = check_fires([GemmFactors(), LinearBatchNorm()], model(body, ARRAYS), changed=1)
    assert ops(result) == ["Gemm"]


def test_shared_constants_are_copied() -> None:
    head = "g (float[3,5] x) => (float[p,q] z, float[r,s] w)"
    body = f"{{ y = Gemm (x, weight, bias)\n z = {NORM}\n w = Gemm (x, weight, bias) }}"
    table = constants(check_fires(LinearBatchNorm(), model(head + body, ARRAYS), changed=1))
    np.testing.assert_array_equal(table["weight"], ARRAYS["weight"])
    np.testing.assert_array_equal(table["bias"], ARRAYS["bias"])


def test_weight_behind_transpose() -> None:
    linear = "weight = Transpose (stored)\n y = MatMul (x, weight)"
    arrays = {"stored": normal(1, 4, 5), **norm_parameters(4)}
    check_fires(LinearBatchNorm(), model(text(linear), arrays), changed=1)


@pytest.mark.parametrize("channels", [3, 4])
def test_refuses_three_axes(channels: int) -> None:
    # Channels are axis 1; with as many rows as columns only the rank tells them apart.
    body = text(LINEAR["MatMul"], shape=f"2,{channels},5", out="p,q,r")
    proto = model(body, {"weight": normal(1, 5, 4), **norm_parameters(channels)})
    check_stays(LinearBatchNorm(), proto, "not known to have 2 axes")


def test_refuses_an_unknown_rank() -> None:
    proto = model(text("u = Relu (x)\n y = MatMul (u, weight)"), ARRAYS)
    check_stays(LinearBatchNorm(), proto, "not known to have 2 axes")


@pytest.mark.parametrize("linear", ["Gemm", "MatMul + Add"])
def test_refuses_a_bias_along_rows(linear: str) -> None:
    proto = model(text(LINEAR[linear]), {**ARRAYS, "bias": normal(2, 3, 1)})
    reason = "bias does not have one value a channel"
    check_stays(LinearBatchNorm(), proto, reason)


@pytest.mark.parametrize("missing", ["weight", "bias", "mean"])
def test_refuses_what_is_computed(missing: str) -> None:
    kind = {"weight": "float[5,4]", "bias": "float[4]", "mean": "float[4]"}[missing]
    body = text(LINEAR["Gemm"]).replace("x)", f"x, {kind} {missing})", 1)
    proto = model(body, {k: v for k, v in ARRAYS.items() if k != missing})
    check_stays(LinearBatchNorm(), proto, "not a constant")


def test_refuses_training_mode() -> None:
    norm = NORM.replace(" (", " <training_mode = 1> (")
    body = text(LINEAR["Gemm"], norm).replace("z = Batch", "z, m2, v2 = Batch")
    check_stays(LinearBatchNorm(), model(body, ARRAYS), "training mode")


@pytest.mark.parametrize("out", ["w", "y"])
def test_a_second_reader_stays(out: str) -> None:
    head = f"g (float[3,5] x) => (float[p,q] z, float[r,s] {out})"
    body = f"{{ y = Gemm (x, weight, bias)\n z = {NORM}\n w = Relu (y) }}"
    check_stays(LinearBatchNorm(), model(head + body, ARRAYS))


def test_a_refused_matmul_leaves_no_gemm_behind() -> None:
    half = {k: v.astype(np.float16) for k, v in ARRAYS.items()}
    half["scale"][:] = 6e4
    body = text(LINEAR["MatMul"]).replace("float[", "float16[")
    check_stays(LinearBatchNorm(), model(body, half), "overflow or underflow")


def test_float16() -> None:
    half = {k: v.astype(np.float16) for k, v in ARRAYS.items()}
    body = text(LINEAR["MatMul + Add"]).replace("float[", "float16[")
    table = constants(check_fires(LinearBatchNorm(), model(body, half), rtol=4e-3))
    assert all(each.dtype == np.float16 for each in table.values())
