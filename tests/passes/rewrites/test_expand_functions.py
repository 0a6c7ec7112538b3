"""Operators written as ONNX defines them."""

import numpy as np
import pytest
from harness import check_fires, check_stays, model, ops

from qgraph.passes.rewrites.expand_functions import EXPANDED, ExpandFunctions

HEADS = "float[1,2,4,8]"


def attention(inputs, call, outputs=f"{HEADS} y", opset=23):
    text = f"""<ir_version: 10, opset_import: ["" : {opset}]>
    net ({inputs}) => ({outputs}) {{ {call} }}"""
    return model(text)


@pytest.mark.parametrize(
    ("inputs", "call"),
    [
        (f"{HEADS} q, {HEADS} k, {HEADS} v", "y = Attention(q, k, v)"),
        (
            f"{HEADS} q, {HEADS} k, {HEADS} v",
            "y = Attention<is_causal = 1, softcap = 2.0>(q, k, v)",
        ),
        (f"{HEADS} q, {HEADS} k, {HEADS} v, float[4,4] m", "y = Attention(q, k, v, m)"),
        (f"{HEADS} q, float[1,1,4,8] k, float[1,1,4,8] v", "y = Attention<scale = 0.5>(q, k, v)"),
        (
            "float[1,4,16] q, float[1,4,16] k, float[1,4,16] v",
            """z = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v)
            s = Constant<value_ints = [1,4,2,8]>()
            t = Reshape(z, s)  y = Transpose<perm = [0,2,1,3]>(t)""",
        ),
    ],
)
def test_attention_is_written_out(inputs, call):
    out = check_fires(ExpandFunctions(), attention(inputs, call), changed=1)
    assert "Attention" not in ops(out) and {"MatMul", "Softmax"} <= set(ops(out))


def test_a_past_behind_an_omitted_mask():
    proto = attention(
        f"{HEADS} q, {HEADS} k, {HEADS} v, float[1,2,3,8] pk, float[1,2,3,8] pv",
        "y, key, value = Attention(q, k, v, , pk, pv)",
        f"{HEADS} y, float[1,2,7,8] key, float[1,2,7,8] value",
    )
    check_fires(ExpandFunctions(), proto, changed=1)


def test_layer_normalization_whose_mean_is_read():
    text = """net (float[2,4] x) => (float[2,4] y, float[2,1] m) {
      y, m = LayerNormalization(x, g)
    }"""
    proto = model(text, {"g": np.ones(4, np.float32)})
    out = check_fires(ExpandFunctions(), proto, changed=1)
    assert "LayerNormalization" not in ops(out)


def test_layer_normalization_stays_where_nobody_reads_its_mean():
    text = "net (float[2,4] x) => (float[2,4] y) { y, m = LayerNormalization(x, g) }"
    check_stays(ExpandFunctions(), model(text, {"g": np.ones(4, np.float32)}))


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ("(float[2,5] x) => (float[2,3] y) { y = CenterCropPad<axes = [1]>(x, s) }", 21),
        ("(float[2,5] x) => (float[2,8] y) { y = CenterCropPad<axes = [1]>(x, s) }", 21),
    ],
)
def test_crops_are_written_out(text, opset):
    size = np.array([3 if "2,3" in text else 8], np.int64)
    check_fires(ExpandFunctions(), model(f"net {text}", {"s": size}, opset=opset), changed=1)


def test_definitions_with_loops_stay(monkeypatch):
    monkeypatch.setitem(EXPANDED, "Range", lambda _: True)
    text = "net (int64 n) => (int64[N] y) { y = Range(a, n, b) }"
    check_stays(ExpandFunctions(), model(text, {"a": np.int64(0), "b": np.int64(1)}), "a loop")


def test_operators_without_a_definition_stay(monkeypatch):
    monkeypatch.setitem(EXPANDED, "Conv", lambda _: True)
    text = "net (float[1,1,4] x) => (float[1,1,4] y) { y = Conv(x, w) }"
    check_stays(
        ExpandFunctions(), model(text, {"w": np.ones((1, 1, 1), np.float32)}), "defines no other"
    )
