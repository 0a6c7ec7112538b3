"""Causal attention as one operator: what fits, what doesn't, and that it computes the same."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from harness import check_fires, check_stays, model, ops, random_feeds
from hypothesis import given, settings
from hypothesis import strategies as st
from llamas import random_weights

from models.zoo.llama import Config
from models.zoo.llama_onnx import build
from qgraph import onnx_io
from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.kv_cache import find_caches
from qgraph.passes.contrib.group_query_attention import GroupQueryAttention
from qgraph.passes.infer import InferShapes

HEADS, SIZE = 4, 16
CONFIG = Config(layers=2, width=64, heads=4, kv_heads=2, hidden=48, vocabulary=40, context=64)
PASSES = [InferShapes(), GroupQueryAttention()]


def decoder(config=CONFIG, kv=False):
    return ir.to_proto(build(config, random_weights(config), kv=kv))


def feeds(config, batch, new, past=None, seed=0):
    rng = np.random.default_rng(seed)
    found = {"input_ids": rng.integers(0, config.vocabulary, (batch, new))}
    if past is not None:
        shape = (batch, config.kv_heads, past, config.head_size)
        for layer in range(config.layers):
            for part in ("key", "value"):
                name = f"past_key_values.{layer}.{part}"
                found[name] = rng.standard_normal(shape).astype(np.float32)
    return found


def operators(proto):
    return [n for n in proto.graph.node if n.op_type == "GroupQueryAttention"]


def attribute(node, name):
    (found,) = (a for a in node.attribute if a.name == name)
    return onnx.helper.get_attribute_value(found)


@pytest.mark.parametrize("batch, new", [(1, 1), (1, 9), (2, 5), (1, 64)])
def test_a_decoder_without_cache(batch, new):
    out = check_fires(PASSES, decoder(), changed=2, feeds=feeds(CONFIG, batch, new))
    first = operators(out)[0]
    assert list(first.input[3:5]) == ["", ""] and len(first.input) == 9
    assert [attribute(first, n) for n in ("num_heads", "kv_num_heads", "do_rotary")] == [4, 2, 1]


@pytest.mark.parametrize(
    "batch, new, past", [(1, 5, 0), (2, 4, 0), (2, 1, 7), (1, 3, 6), (1, 1, 63)]
)
def test_a_decoder_with_cache(batch, new, past):
    proto = decoder(kv=True)
    out = check_fires(PASSES, proto, changed=2, feeds=feeds(CONFIG, batch, new, past))
    before, after = (find_caches(onnx_io.load(each)) for each in (proto, out))
    assert after == before and len(after) == 4


def test_only_what_is_read_of_the_old_nodes_is_left():
    out = check_fires(PASSES, decoder(kv=True), feeds=feeds(CONFIG, 1, 3, 2))
    kinds = set(ops(out))
    assert kinds.isdisjoint({"Softmax", "Split", "Where", "Range", "Greater", "Slice", "Transpose"})


def test_a_cache_in_half_is_cast_before_and_behind():
    proto = decoder(kv=True)
    for value in [*proto.graph.input, *proto.graph.output]:
        if value.name[:4] in ("past", "pres"):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    made = {v.name for v in proto.graph.output} - {"logits"}
    for node in list(proto.graph.node):
        for index, name in enumerate(node.input):
            if name.startswith("past_key") or name in made:
                node.input[index] = f"{name}.float"
        if node.output[0] in made:
            node.output[0] += ".float"
    casts = [
        onnx.helper.make_node("Cast", [v.name], [f"{v.name}.float"], to=1)
        for v in proto.graph.input
        if v.name.startswith("past")
    ]
    rest = []
    for node in proto.graph.node:
        rest.append(node)
        name = node.output[0].removesuffix(".float")
        if name in made:
            rest.append(onnx.helper.make_node("Cast", [f"{name}.float"], [name], to=10))
    del proto.graph.node[:]
    proto.graph.node.extend([*casts, *rest])
    given_feeds = {
        name: array.astype(np.float16) if array.dtype == np.float32 else array
        for name, array in feeds(CONFIG, 1, 3, 4).items()
    }
    out = check_fires(PASSES, proto, changed=2, feeds=given_feeds, rtol=1e-3)
    assert ops(out).count("Cast") == 12  # one for each cache on its way in and out, two a layer


def test_a_cache_that_something_else_reads_stays():
    proto = decoder(kv=True)
    proto.graph.node.append(onnx.helper.make_node("Neg", ["present.1.key"], ["negated"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("negated", 1, [None] * 4))
    reports = check_stays_but(PASSES, proto)
    assert any("read by more than it" in line for line in reports)


@pytest.mark.parametrize("presents", [True, False])
def test_outputs_for_a_cache_that_nobody_reads(presents):
    passes = [InferShapes(), GroupQueryAttention(presents=presents)]
    out = check_fires(passes, decoder(), feeds=feeds(CONFIG, 1, 7))
    assert {len(node.output) for node in operators(out)} == {3 if presents else 1}


@settings(max_examples=8, deadline=None)
@given(
    shared=st.sampled_from([1, 2, 3]),
    kv_heads=st.integers(1, 3),
    half=st.sampled_from([4, 8, 16]),
    kv=st.booleans(),
    new=st.integers(1, 6),
    past=st.integers(0, 6),
)
def test_any_number_and_length_of_heads(shared, kv_heads, half, kv, new, past):
    heads = shared * kv_heads
    config = Config(
        layers=1,
        width=heads * 2 * half,
        heads=heads,
        kv_heads=kv_heads,
        hidden=16,
        vocabulary=20,
        context=16,
    )
    given_feeds = feeds(config, 1, new, past if kv else None)
    out = check_fires(PASSES, decoder(config, kv), changed=1, feeds=given_feeds)
    # Heads of 8 are too short for the operator's own rotary embedding.
    assert attribute(operators(out)[0], "do_rotary") == (half > 4)


def test_angles_that_change_with_the_length_are_turned_outside():
    proto = decoder()
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([40]), "forty"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(2), "twice"))
    nodes = list(proto.graph.node)
    (at,) = [i for i, node in enumerate(nodes) if node.output[0] == "rope.sin"]
    nodes[at].output[0] = "rope.sin.short"
    make = onnx.helper.make_node
    more = [
        make("Greater", ["seq", "forty"], ["is.long"]),
        make("Mul", ["rope.sin.short", "twice"], ["rope.sin.long"]),
        make("Where", ["is.long", "rope.sin.long", "rope.sin.short"], ["rope.sin"]),
    ]
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes[: at + 1], *more, *nodes[at + 1 :]])
    out = check_fires(PASSES, proto, changed=2, feeds=feeds(CONFIG, 1, 50))
    assert attribute(operators(out)[0], "do_rotary") == 0


def test_heads_of_another_length_stay():
    config = Config(layers=1, width=24, heads=2, kv_heads=1, hidden=16, vocabulary=20, context=16)
    check_stays(PASSES, decoder(config), "12 long, not a multiple of 8")


# -- other ways to write it ------------------------------------------------------------------------


def attention(masked, *, scale="s = Div(d, root)", key="Transpose<perm=[0,1,3,2]>(k1)"):
    """Text of one attention of x [batch, length, 64]; `masked` makes m of the scores s."""
    split = "k1 = Transpose<perm=[0,2,1,3]>(k0)" if "(k1)" in key else "k1 = Identity(k0)"
    text = f"""g (float[B,T,{HEADS * SIZE}] x, float[B,T] keep) => (float[B,T,{HEADS * SIZE}] y) {{
        wa = Constant<value_ints=[0,0,{HEADS},{SIZE}]>()
        one = Constant<value_int=1>()
        zero = Constant<value_int=0>()
        root = Constant<value_float=4.0>()
        low = Constant<value_float=-1e9>()
        none = Constant<value_float=0.0>()
        col = Constant<value_ints=[1]>()
        xn = Neg(x)
        xa = Abs(x)
        q0 = Reshape(x, wa)
        k0 = Reshape(xn, wa)
        v0 = Reshape(xa, wa)
        q = Transpose<perm=[0,2,1,3]>(q0)
        {split}
        v = Transpose<perm=[0,2,1,3]>(v0)
        kt = {key}
        d = MatMul(q, kt)
        {scale}
        len0 = Shape<start=1, end=2>(x)
        len = Squeeze(len0)
        at = Range(zero, len, one)
        rows = Unsqueeze(at, col)
        {masked}
        p = Softmax<axis=-1>(m)
        c = MatMul(p, v)
        t = Transpose<perm=[0,2,1,3]>(c)
        w = Constant<value_ints=[0,0,{HEADS * SIZE}]>()
        y = Reshape(t, w)
    }}"""
    return text


GREATER = "later = Greater(at, rows)\nmask = Where(later, low, none)"
TRILU = """sq = Concat<axis=0>(len0, len0)
        full = ConstantOfShape<value = float[1] {-65504.0}>(sq)
        mask = Trilu<upper=1>(full, one)"""
NOT_LESS = """seen = GreaterOrEqual(rows, at)
        hides = Not(seen)
        asf = Cast<to=1>(hides)
        two = Mul(asf, low)
        ax = Constant<value_ints=[0,1]>()
        mask = Unsqueeze(two, ax)"""


@pytest.mark.parametrize("mask", [GREATER, TRILU, NOT_LESS])
@pytest.mark.parametrize("key", ["Transpose<perm=[0,1,3,2]>(k1)", "Transpose<perm=[0,2,3,1]>(k0)"])
def test_masks_and_transposes_as_exporters_write_them(mask, key):
    proto = model_of(f"{mask}\nm = Add(s, mask)", key=key)
    out = check_fires(PASSES, proto, changed=1, feeds=random_feeds(proto, size=6))
    (node,) = operators(out)
    assert attribute(node, "scale") == 0.25 and attribute(node, "do_rotary") == 0


def model_of(masked, **options):
    return model(attention(masked, **options))


@pytest.mark.parametrize(
    "scale, expected",
    [
        ("s = Mul(root, d)", 4.0),
        ("s = Identity(d)", None),
        ("e = Mul(d, root)\ns = Div(e, root)", None),
    ],
)
def test_scales(scale, expected):
    proto = model_of(f"{GREATER}\nm = Add(s, mask)", scale=scale)
    if expected is None:
        check_stays(PASSES, proto)
        return
    (node,) = operators(check_fires(PASSES, proto, changed=1))
    assert attribute(node, "scale") == expected


@pytest.mark.parametrize(
    "masked, reason",
    [
        ("m = Identity(s)", None),
        ("m = Add(s, none)", "batch or heads"),
        # Every query sees all keys but its own.
        ("o = Equal(at, rows)\nmask = Where(o, low, none)\nm = Add(s, mask)", "not causal"),
        # A query sees the tokens from its own on.
        ("o = Less(at, rows)\nmask = Where(o, low, none)\nm = Add(s, mask)", "not causal"),
        # Weakly hidden: that changes results.
        (
            (
                "late = Greater(at, rows)\nbit = Constant<value_float=-3.0>()\n"
                "mask = Where(late, bit, none)\nm = Add(s, mask)"
            ),
            "not causal",
        ),
        # A window of 300, which no short sequence shows.
        (
            (
                "late = Greater(at, rows)\nwide = Constant<value_int=300>()\nend = Add(at, wide)\n"
                "old = Less(end, rows)\nhid = Or(late, old)\nmask = Where(hid, low, none)\n"
                "m = Add(s, mask)"
            ),
            "counts to 300",
        ),
        # Padding: what the mask says depends on data.
        (
            (
                "ax = Constant<value_ints=[1,2]>()\nk4 = Unsqueeze(keep, ax)\nn4 = Mul(k4, low)\n"
                f"{GREATER}\nboth = Add(mask, n4)\nm = Add(s, both)"
            ),
            "depends on the data of input 'keep'",
        ),
    ],
)
def test_other_masks_stay(masked, reason):
    check_stays(PASSES, model_of(masked), reason)


def test_a_banded_table_stays():
    band = np.tri(128, dtype=bool) & ~np.tri(128, k=-80, dtype=bool)
    table = np.where(band, 0, -1e9).astype(np.float32)
    cut = "z = Constant<value_ints=[0,0]>()\nsq = Concat<axis=0>(len0, len0)\n"
    text = attention(f"{cut}mask = Slice(table, z, sq)\nm = Add(s, mask)")
    check_stays(PASSES, model(text, {"table": table}), "cut from 'table'")


def test_excluded_nodes_stay():
    proto = decoder()
    context = Context(exclude=("layers.1.attn.softmax",))
    out = check_fires(PASSES, proto, changed=1, feeds=feeds(CONFIG, 1, 4), context=context)
    assert ops(out).count("Softmax") == 1
    check_stays(PASSES, proto, "excluded by 'Softmax'", Context(exclude=("Softmax",)))


def test_positions_of_another_cache_stay():
    graph = build(CONFIG, random_weights(CONFIG), kv=True)
    for value in graph.graph.inputs:
        if value.name == "past_key_values.1.value":
            value.shape = ir.Shape(["batch", 2, "older", 16])
    reports = check_stays_but(PASSES, ir.to_proto(graph))
    assert any("does not count its cache's tokens" in line for line in reports)


def check_stays_but(passes, proto):
    graph = onnx_io.load(proto)
    report = None
    for each in passes:
        report = each.run(graph, Context())
    assert report.changed == 1
    return [refusal.reason for refusal in report.refused]


def test_the_file_can_be_written_and_read(tmp_path):
    graph = Graph(build(CONFIG, random_weights(CONFIG), kv=True))
    for each in PASSES:
        each.run(graph, Context())
    onnx_io.save(graph, tmp_path / "m.onnx")
    again = onnx_io.load(tmp_path / "m.onnx")
    assert [n.op_type for n in again.nodes()] == [n.op_type for n in graph.nodes()]


def test_a_decoder_opens_with_all_axes_fixed():
    """As a CUDA graph wants it. onnxruntime 1.31 refused it where lengths came straight from Cast."""
    import onnxruntime

    proto = check_fires(PASSES, decoder(kv=True), feeds=feeds(CONFIG, 1, 3, 2))
    options = onnxruntime.SessionOptions()
    for name, size in (("batch", 1), ("seq", 1), ("past", 7)):
        options.add_free_dimension_override_by_name(name, size)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = feeds(CONFIG, 1, 1, 7)
    want = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(session.run(None, given)[0], want.run(None, given)[0])
