"""Attention with any mask as one operator."""

from pathlib import Path

import numpy as np
import pytest
from harness import assert_close, check_fires, check_stays, model, ops, run_reference

from qgraph import onnx_io
from qgraph.flow import exact_passes
from qgraph.passes.cleanup.drop_identities import DropIdentities
from qgraph.passes.contrib.lowering import lower
from qgraph.passes.contrib.multi_head_attention import MultiHeadAttention
from qgraph.passes.infer import InferShapes
from qgraph.pipeline import Pipeline
from qgraph.targets.contrib import CONTRIBUTED

MODELS = Path(__file__).resolve().parents[3] / "models" / "digits"
PASSES = [InferShapes(), MultiHeadAttention()]
SPLIT, CUT = "Transpose<perm=[0,1,3,2]>(kh)", "Transpose<perm=[0,2,3,1]>(kr)"


def encoder(mask, shape, keys=SPLIT, values="v", length="T"):
    """Two heads of 4 over x [batch, length, 8], masked by an input or not."""
    given = f", float{shape} mask" if shape else ""
    heads = "Constant<value_ints=[0,0,2,4]>()"
    return model(
        f"""g (float[B,{length},8] x{given}) => (float[B,{length},8] y) {{
            two = {heads}
            root = Constant<value_float=2.0>()
            ones = Constant<value_float=1.0>()
            k = Neg(x)
            v = Abs(x)
            qr = Reshape(x, two)
            kr = Reshape(k, two)
            vr = Reshape({values}, two)
            qh = Transpose<perm=[0,2,1,3]>(qr)
            kh = Transpose<perm=[0,2,1,3]>(kr)
            vh = Transpose<perm=[0,2,1,3]>(vr)
            kt = {keys}
            d = MatMul(qh, kt)
            s = Div(d, root)
            {mask}
            p = Softmax<axis=-1>(m)
            c = MatMul(p, vh)
            t = Transpose<perm=[0,2,1,3]>(c)
            w = Constant<value_ints=[0,0,8]>()
            y = Reshape(t, w)
        }}"""
    )


ADDED = "m = Add(s, mask)"


@pytest.mark.parametrize("keys", [SPLIT, CUT])
@pytest.mark.parametrize(
    "mask, shape",
    [
        ("m = Identity(s)", ""),
        ("m = Add(mask, s)", "[B,1,1,T]"),
        (ADDED, "[T,T]"),
        (ADDED, "[1,2,T,T]"),
        (ADDED, "[B,2,T,T]"),
    ],
)
def test_masks_of_every_shape(mask, shape, keys):
    proto = encoder(mask, shape, keys)
    out = check_fires([DropIdentities(), *PASSES], proto, changed=1)
    assert "Softmax" not in ops(out)
    node = next(n for n in out.graph.node if n.op_type == "MultiHeadAttention")
    assert len(node.input) == (6 if shape else 3)


def test_a_known_length_needs_no_expand():
    out = check_fires(PASSES, encoder(ADDED, "[5,5]", length="5"), changed=1)
    assert "Expand" not in ops(out)


def test_padding_hides_keys_as_before():
    proto = encoder(ADDED, "[B,1,1,T]")
    mask = np.array([[0, 0, 0, 0], [0, 0, -3.4e38, -3.4e38]], np.float32)[:, None, None]
    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    check_fires(PASSES, proto, feeds={"x": x, "mask": mask})


@pytest.mark.parametrize(
    "proto, reason",
    [
        (encoder(ADDED, "[1,T,T]"), "two axes or four"),
        (encoder("m = Max(s, s)", ""), None),
        (encoder("e = Add(kh, kh)\nf = MatMul(qh, kt)\nm = Add(f, e)", "[T,T]"), None),
    ],
)
def test_stays(proto, reason):
    check_stays(PASSES, proto, reason)


def test_the_vit_of_the_digits():
    graph = onnx_io.load(MODELS / "digits_vit.onnx")
    Pipeline(exact_passes({})).run(graph)
    before = onnx_io.to_proto(graph)
    lower(graph, CONTRIBUTED["onnxruntime-cuda"])
    out = onnx_io.to_proto(graph)
    assert ops(out).count("MultiHeadAttention") == 3 and "Softmax" not in ops(out)
    assert ops(out).count("SkipLayerNormalization") == 6
    (entry,) = before.graph.input
    shape = [d.dim_value or 2 for d in entry.type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    feeds = {entry.name: x}
    assert_close(run_reference(before, feeds), run_reference(out, feeds))
