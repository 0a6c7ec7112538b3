"""Linear layers as MatMul by a constant [K, N]: Gemm, views of constants, 1x1 convolutions."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from harness import apply, check_fires, check_stays, model, ops
from onnx import numpy_helper

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.passes.linear_to_matmul import LinearToMatMul

RNG = np.random.default_rng(0)
W = RNG.standard_normal((5, 3)).astype(np.float32)
B = RNG.standard_normal(3).astype(np.float32)


def initializers(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def gemm(attributes: str = "", weight: np.ndarray = W, bias: np.ndarray | None = B):
    last = "" if bias is None else ", b"
    return model(
        f"g (float[M, 5] x) => (float[M, 3] y) {{ [layer] y = Gemm {attributes} (x, w{last}) }}",
        {"w": weight} | ({} if bias is None else {"b": bias}),
    )


@pytest.mark.parametrize(
    ("proto", "nodes"),
    [
        (gemm(), ["MatMul", "Add"]),
        (gemm(bias=None), ["MatMul"]),
        (gemm("<transB = 1>", W.T), ["MatMul", "Add"]),
        (gemm("<transB = 1, alpha = 0.3, beta = 2.0>", W.T), ["MatMul", "Add"]),
        (gemm("<alpha = 0.3>", bias=np.float32(2)), ["MatMul", "Add"]),
        (gemm("<beta = 0.0>", bias=RNG.standard_normal((1, 3)).astype("f")), ["MatMul", "Add"]),
    ],
)
def test_gemm(proto, nodes):
    out = check_fires(LinearToMatMul(), proto, changed=1)
    assert ops(out) == nodes and out.graph.node[0].name == "layer"
    assert initializers(out)[out.graph.node[0].input[1]].shape == (5, 3)


def test_only_the_layers_that_are_named_are_rewritten():
    proto = model(
        "g (float[M, 5] x) => (float[M, 3] y, float[M, 3] z) "
        "{ [one] y = Gemm (x, w)\n [two] z = Gemm (x, w) }",
        {"w": W},
    )
    out = check_fires(LinearToMatMul(only=("two",)), proto, changed=1)
    assert {node.name: node.op_type for node in out.graph.node} == {"one": "Gemm", "two": "MatMul"}


def test_a_plain_weight_is_not_copied():
    out = check_fires(LinearToMatMul(), gemm())
    assert out.graph.node[0].input[1] == "w"


def test_a_computed_bias_is_added():
    proto = model(
        "g (float[2, 5] x, float[2, 1] b) => (float[2, 3] y) { y = Gemm (x, w, b) }", {"w": W}
    )
    check_fires(LinearToMatMul(), proto)


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (
            model(
                "g (float[5, 2] x) => (float[2, 3] y) { y = Gemm <transA = 1> (x, w) }", {"w": W}
            ),
            "transA",
        ),
        (
            model(
                "g (float[2, 5] x, float[3] b) => (float[2, 3] y) "
                "{ y = Gemm <beta = 0.5> (x, w, b) }",
                {"w": W},
            ),
            "beta = 0.5",
        ),
        (gemm("<alpha = 3e38>", W * np.float32(100)), "alpha = 3e"),
        (
            model("g (float[3, 2] x) => (float[5, 2] y) { y = MatMul (w, x) }", {"w": W}),
            "its constant comes first",
        ),
    ],
)
def test_refusals(proto, reason):
    check_stays(LinearToMatMul(), proto, reason)


@pytest.mark.parametrize(
    "proto",
    [
        model("g (float[2, 5] x, float[5, 3] w) => (float[2, 3] y) { y = Gemm (x, w) }"),
        model("g (float[2, 5] x) => (float[2, 3] y) { y = MatMul (x, w) }", {"w": W}),
        model(
            "g (float[4, 2, 5] x) => (float[4, 2, 3] y) { y = MatMul (x, w) }",
            {"w": RNG.standard_normal((4, 5, 3)).astype(np.float32)},
        ),
    ],
)
def test_what_is_no_business_of_this_pass(proto):
    assert check_stays(LinearToMatMul(), proto)[-1].refused == []


def test_a_transposed_constant_becomes_a_constant():
    proto = model(
        "g (float[2, 4, 5] x) => (float[2, 4, 3] y) "
        "{ t = Transpose <perm = [1, 0]> (w) [layer] y = MatMul (x, t) }",
        {"w": W.T},
    )
    out = check_fires(LinearToMatMul(), proto, changed=1)
    assert ops(out) == ["MatMul"] and out.graph.node[0].name == "layer"
    assert [a.shape for a in initializers(out).values()] == [(5, 3)]


def test_layers_that_share_a_weight_go_on_sharing_it():
    proto = model(
        "g (float[2, 5] x) => (float[2, 3] y, float[2, 3] z, float[2, 3] v) {"
        " y = Gemm <transB = 1> (x, w) z = Gemm <transB = 1> (x, w, b)"
        " t = Transpose <perm = [1, 0]> (w) v = MatMul (x, t) }",
        {"w": W.T, "b": B},
    )
    out = check_fires(LinearToMatMul(), proto, changed=3)
    assert sorted(a.shape for a in initializers(out).values()) == [(3,), (5, 3)]


@pytest.mark.parametrize("head", ["Gemm <transB = 1> (x, w)", "MatMul (x, t)"])
def test_a_table_that_is_the_head_too_is_stored_once(head):
    proto = model(
        "g (float[2, 5] x, int64[2] rows) => (float[2, 3] y, float[2, 5] z) {"
        f" z = Gather (w, rows) t = Transpose <perm = [1, 0]> (w) y = {head} }}",
        {"w": W.T},
    )
    out, _, _ = apply(LinearToMatMul(), proto)
    assert [a.shape for a in initializers(out).values()] == [(3, 5)]
    assert "Gemm" not in ops(out) and "MatMul" in ops(out)


def conv(attributes: str, groups: int = 1, shape: str = "H, 7", out: str = "P, Q", kernel: int = 1):
    ones = [kernel] * (shape.count(",") + 1)
    return model(
        f"g (float[2, 4, {shape}] x) => (float[2, 6, {out}] y)"
        f" {{ [layer] y = Conv <{attributes}> (x, w, b) }}",
        {
            "w": RNG.standard_normal((6, 4 // groups, *ones)).astype(np.float32),
            "b": np.arange(6, dtype=np.float32),
        },
    )


@pytest.mark.parametrize(
    "proto",
    [
        conv("kernel_shape = [1, 1]"),
        conv('auto_pad = "SAME_UPPER"'),
        conv("pads = [0, 0]", shape="L", out="P"),
        conv("strides = [1, 1, 1]", shape="D, 3, 4", out="P, Q, R"),
    ],
)
def test_convolution_of_one_element(proto):
    out = check_fires(LinearToMatMul(), proto, changed=1)
    assert ops(out) == ["Transpose", "MatMul", "Add", "Transpose"]
    assert out.graph.node[1].name == "layer"
    assert check_stays(LinearToMatMul(convolutions=False), proto)[-1].refused == []


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (conv("strides = [2, 2]"), "strides"),
        (conv("group = 2", groups=2), "groups"),
        (conv("pads = [1, 1, 1, 1]"), "padding"),
        (conv("group = 1", kernel=3), None),
    ],
)
def test_other_convolutions_stay(proto, reason):
    reports = check_stays(LinearToMatMul(), proto, reason)
    assert reason is not None or reports[-1].refused == []


def test_weights_on_disk_stay_there(tmp_path: Path):
    large = RNG.standard_normal((300, 50)).astype(np.float32)
    proto = model(
        "g (float[2, 50] x) => (float[2, 300] y) { y = Gemm <transB = 1> (x, w) }", {"w": large}
    )
    onnx.save(
        proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    graph = onnx_io.load(tmp_path / "m.onnx")
    assert LinearToMatMul().run(graph, Context()).changed == 1
    [weight] = graph.initializers
    assert type(weight.const_value).__name__ == "LazyTensor"
    # Over the file that it is read from.
    onnx_io.save(graph, tmp_path / "m.onnx", external=True)
    [weight] = onnx_io.load(tmp_path / "m.onnx").initializers
    assert weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy(), large.T)
