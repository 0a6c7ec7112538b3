"""Linear layers that read one value merge, when asked to."""

import numpy as np
import pytest
from folds import normal, only_node
from harness import check_fires, check_stays, model, ops
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.fusions.horizontal_matmul import HorizontalMatMul

ON = HorizontalMatMul(max_rows=64)
ARRAYS = {
    **{f"w{i}": normal(i, 5, n) for i, n in enumerate((4, 2, 3))},
    **{f"b{i}": normal(9 + i, n) for i, n in enumerate((4, 2, 3))},
}


def text(*lines: str, shape: str = "2,3,5", outs: str = "q k v", rank: int = 3) -> str:
    names = ",".join(f"float[{','.join(f'{o}{i}' for i in range(rank))}] {o}" for o in outs.split())
    return f"g (float[{shape}] x) => ({names}) {{ " + "\n".join(lines) + " }"


PLAIN = ["q = MatMul (x, w0)", "k = MatMul (x, w1)", "v = MatMul (x, w2)"]
BIASED = [
    "p = MatMul (x, w0)",
    "q = Add (p, b0)",
    "l = MatMul (x, w1)",
    "k = Add (b1, l)",
    "u = MatMul (x, w2)",
    "v = Add (u, b2)",
]


def test_is_off_by_default() -> None:
    assert HorizontalMatMul().max_rows == 0
    (report,) = check_stays(HorizontalMatMul(), model(text(*PLAIN), ARRAYS))
    assert not report.refused


def test_fires() -> None:
    result = check_fires(ON, model(text(*PLAIN), ARRAYS), changed=1)
    assert ops(result) == ["MatMul", "Split"]
    assert list(only_node(result, "Split").output) == ["q", "k", "v"]


def test_biases_merge_too() -> None:
    result = check_fires(ON, model(text(*BIASED), ARRAYS), changed=1)
    assert ops(result) == ["MatMul", "Add", "Split"]


def test_a_layer_without_bias_gets_zeros() -> None:
    lines = [*BIASED[:2], PLAIN[1], *BIASED[4:]]
    assert ops(check_fires(ON, model(text(*lines), ARRAYS))) == ["MatMul", "Add", "Split"]


@pytest.mark.parametrize("trans", [0, 1])
def test_gemms(trans: int) -> None:
    arrays = {k: v.T.copy() if trans and k[0] == "w" else v for k, v in ARRAYS.items()}
    lines = [
        f"q = Gemm <transB = {trans}> (x, w0, b0)",
        f"k = Gemm <transB = {trans}> (x, w1)",
        f"v = Gemm <transB = {trans}> (x, w2, b2)",
    ]
    proto = model(text(*lines, shape="3,5", rank=2), arrays)
    assert ops(check_fires(ON, proto, changed=1)) == ["Gemm", "Split"]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=2, max_size=4), st.integers(1, 4)
)
@settings(max_examples=30, deadline=None)
def test_any_sizes(layers: list[tuple[int, bool]], inner: int) -> None:
    lines, arrays = [], {}
    for i, (columns, bias) in enumerate(layers):
        arrays[f"w{i}"] = normal(i, inner, columns)
        lines.append(f"{'p' if bias else 'o'}{i} = MatMul (x, w{i})")
        if bias:
            arrays[f"b{i}"] = normal(9 + i, columns)
            lines.append(f"o{i} = Add (p{i}, b{i})")
    outs = " ".join(f"o{i}" for i in range(len(layers)))
    proto = model(text(*lines, shape=f"3,{inner}", outs=outs, rank=2), arrays)
    check_fires(ON, proto, changed=1)


def test_layers_far_apart_in_the_graph() -> None:
    lines = ["q = MatMul (x, w0)", "r = Relu (q)", "k = MatMul (x, w1)", "s = Relu (k)"]
    check_fires(ON, model(text(*lines, outs="r s"), ARRAYS), changed=1)


def test_a_product_that_is_read_twice_keeps_its_add_outside() -> None:
    lines = [*BIASED[:2], "r = Relu (p)", *BIASED[2:4]]
    result = check_fires(ON, model(text(*lines, outs="q r k"), ARRAYS), changed=1)
    assert ops(result).count("Add") == 2


def test_one_weight_read_twice() -> None:
    lines = ["q = MatMul (x, w0)", "k = MatMul (x, w0)"]
    check_fires(ON, model(text(*lines, outs="q k"), ARRAYS), changed=1)


def test_weight_behind_transpose() -> None:
    lines = ["w0 = Transpose (t)", *PLAIN]
    arrays = {**{k: v for k, v in ARRAYS.items() if k != "w0"}, "t": normal(1, 4, 5)}
    check_fires(ON, model(text(*lines), arrays), changed=1)


@pytest.mark.parametrize("shape", ["2,33,5", "N,3,5"])
def test_refuses_many_or_unknown_rows(shape: str) -> None:
    found = "66" if shape[0] == "2" else "an unknown number of"
    check_stays(ON, model(text(*PLAIN, shape=shape), ARRAYS), f"has {found} rows")


def test_refuses_old_opsets() -> None:
    # The loader upgrades to 21, so the refusal is met only where that fails.
    import onnx_ir as ir

    from qgraph.graph import Graph
    from qgraph.pipeline import Pipeline

    proto = model(text(*PLAIN), ARRAYS, opset=12, ir_version=7)
    (stage,) = Pipeline([ON]).run(Graph(ir.serde.deserialize_model(proto)))
    assert stage.report.changed == 0 and "opset 12" in stage.report.refused[0].reason


@pytest.mark.parametrize(
    "lines",
    [
        ["q = MatMul (x, w0)", "k = MatMul (x, c)"],  # a computed weight
        ["q = MatMul (x, w0)", "k = Gemm (x, w1)"],  # two kinds
        ["q = Gemm (x, w0)", "k = Gemm <alpha = 0.5> (x, w1)"],
        ["q = MatMul (x, w0)", "r = Relu (x)", "k = MatMul (r, w1)"],  # two inputs
        ["q = MatMul (x, w0)", "k = MatMul (d, x)"],  # x as the weight
    ],
)
def test_what_can_not_merge_is_no_case(lines: list[str]) -> None:
    body = text(*lines, shape="3,5", outs="q k", rank=2)
    body = body.replace("x)", "x, float[5,4] c, float[2,3] d)", 1)
    (report,) = check_stays(ON, model(body, ARRAYS))
    assert not report.refused


def test_a_subgraph_is_not_mixed_with_its_surroundings() -> None:
    proto = model(
        """g (float[3,5] x, bool flag) => (float[a,b] out) {
            q = MatMul (x, w0)
            out = If (flag) <then_branch = t () => (float[a,b] y) { y = MatMul (x, w0) },
                             else_branch = e () => (float[c,d] z) { z = Relu (q) }> }""",
        ARRAYS,
    )
    check_stays(ON, proto)


def test_float16() -> None:
    half = {k: v.astype(np.float16) for k, v in ARRAYS.items()}
    proto = model(text(*BIASED).replace("float[", "float16["), half)
    check_fires(ON, proto, changed=1, rtol=2e-3)
