import numpy as np
import pytest
from formulas import Formula
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from realmodels import ROOT, shared

from qgraph import onnx_io
from qgraph.passes.fusions._attention_mask import is_lower_triangular
from qgraph.passes.fusions.attention import MarkAttention
from qgraph.pipeline import Pipeline

HEADS, TOKENS, SIZE = 4, 6, 8
RNG = np.random.default_rng(0)


def mark(proto):
    graph = onnx_io.load(proto)
    onnx_io.infer_shapes(graph)
    before = onnx_io.to_proto(graph)
    report = Pipeline([MarkAttention()]).run(graph)[0].report
    assert report.changed == 0 and onnx_io.to_proto(graph) == before
    assert len(graph.facts.attention) == len(report.details)
    return graph.facts.attention, report


def only(proto):
    found, report = mark(proto)
    assert len(found) == 1, report.refused
    return found[0]


def split(f, x, heads, perm=(0, 2, 1, 3)):
    """Project and split into heads, [batch, heads, tokens, size]."""
    y = f.op("MatMul", x, f.const(RNG.standard_normal((HEADS * SIZE, heads * SIZE))))
    y = f.op("Reshape", y, f.const([0, 0, heads, SIZE], np.int64))
    return f.op("Transpose", y, perm=list(perm))


# -- parts, each in several spellings ----------------------------------------------------------


def scaled(f, x, how, by=SIZE**-0.5):
    if how == "Mul":
        return f.either("Mul", x, f.const(by))
    if how == "Div":
        return f.op("Div", x, f.const(1 / by))
    assert how == "computed"
    size = f.op("Gather", f.op("Shape", "x"), f.const(2, np.int64))
    return f.op("Div", x, f.op("Sqrt", f.op("Cast", size, to=TensorProto.FLOAT)))


def repeated(f, k, how, heads, times):
    """Repeat each head, [batch, heads, tokens, size] -> [batch, heads * times, tokens, size]."""
    many = f.const([0, heads * times, TOKENS, SIZE], np.int64)
    if how in ("Expand", "Tile"):
        five = f.op("Unsqueeze", k, f.const([2], np.int64))
        if how == "Expand":
            shape = f.const([1, heads, times, TOKENS, SIZE], np.int64)
            return f.op("Reshape", f.op("Expand", five, shape), many)
        return f.op("Reshape", f.op("Tile", five, f.const([1, 1, times, 1, 1], np.int64)), many)
    if how == "Concat":
        five = f.op("Unsqueeze", k, f.const([2], np.int64))
        return f.op("Reshape", f.op("Concat", *[five] * times, axis=2), many)
    assert how == "Gather"
    return f.op("Gather", k, f.const(np.repeat(np.arange(heads), times), np.int64), axis=1)


def halves(f, x, how):
    half = SIZE // 2
    if how == "Split":
        name = f"part{len(f.nodes)}"
        f.nodes.append(
            helper.make_node(
                "Split", [x, f.const([half, half], np.int64)], [name + "a", name + "b"], axis=-1
            )
        )
        return name + "a", name + "b"

    def cut(low, high, step):
        bounds = [f.const([v], np.int64) for v in (low, high, 3, step)]
        return f.op("Slice", x, *bounds)

    if how == "pairs":
        return cut(0, SIZE, 2), cut(1, SIZE, 2)
    return cut(0, half, 1), cut(half, SIZE, 1)


def rotated(f, x, how):
    cos, sin = (f.const(RNG.standard_normal((TOKENS, SIZE))) for _ in range(2))
    if how in ("Slice", "Split"):
        first, second = halves(f, x, how)
        turned = f.op("Concat", f.op("Neg", second), first, axis=-1)
        return f.either("Add", f.either("Mul", x, cos), f.either("Mul", turned, sin))
    first, second = halves(f, x, "pairs" if how == "pairs" else "Slice")
    cos, sin = (f.const(RNG.standard_normal((TOKENS, SIZE // 2))) for _ in range(2))
    one = f.op("Sub", f.either("Mul", first, cos), f.either("Mul", second, sin))
    two = f.either("Add", f.either("Mul", second, cos), f.either("Mul", first, sin))
    if how == "written out":
        return f.op("Concat", one, two, axis=-1)
    assert how == "pairs"
    last = f.const([4], np.int64)
    both = f.op("Concat", f.op("Unsqueeze", one, last), f.op("Unsqueeze", two, last), axis=-1)
    return f.op("Reshape", both, f.const([0, HEADS, TOKENS, SIZE], np.int64))


def lower():
    return np.tri(TOKENS, dtype=bool)


def positions(f):
    return f.op("Range", f.const(0, np.int64), f.const(TOKENS, np.int64), f.const(1, np.int64))


def masked(f, s, how):
    """Return the scores behind a mask, and what inputs the mask adds to the graph."""
    hidden = f.const(-1e9, np.float32)
    if how == "Add":
        return f.either("Add", s, "mask"), {"mask": ["batch", 1, 1, TOKENS]}
    if how == "Sub":
        return f.op("Sub", s, "mask"), {"mask": ["batch", 1, 1, TOKENS]}
    if how == "Where":
        cond = f.op("Cast", "mask", to=TensorProto.BOOL)
        return f.op("Where", cond, s, hidden), {"mask": ["batch", 1, 1, TOKENS]}
    if how == "causal constant":
        return f.either("Add", s, f.const(np.where(lower(), 0, -np.inf))), {}
    if how == "causal condition":
        return f.op("Where", f.const(~lower()[None, None], bool), hidden, s), {}
    if how == "causal Trilu":
        ones = f.op("Expand", f.const(-1e9), f.const([TOKENS, TOKENS], np.int64))
        upper = f.op("Trilu", ones, f.const(1, np.int64), upper=1)
        return f.either("Add", s, upper), {}
    if how == "causal Trilu and Add":
        upper = f.op("Trilu", f.const(np.full((TOKENS, TOKENS), -1e9)), f.const(1, np.int64))
        return f.op("Add", f.op("Add", s, upper), "mask"), {"mask": ["batch", 1, 1, TOKENS]}
    assert how == "causal positions"
    rows = f.op("Unsqueeze", positions(f), f.const([1], np.int64))
    columns = f.op("Unsqueeze", positions(f), f.const([0], np.int64))
    mask = f.op("Where", f.op("Greater", columns, rows), hidden, f.const(0.0))
    return f.op("Add", s, mask), {}


MASKS = [
    "",
    "Add",
    "Sub",
    "Where",
    "causal constant",
    "causal condition",
    "causal Trilu",
    "causal Trilu and Add",
    "causal positions",
]
SCALES = ["", "Mul", "Div", "computed"]
PLACES = ["scores", "query", "key", "both"]
GROUPS = ["", "Expand", "Tile", "Concat", "Gather", "one"]
ROTARY = ["", "Slice", "Split", "written out", "pairs"]


def block(f, scale="Mul", place="scores", mask="", group="", rotary="", merged=False, guard=False):
    """Build one attention block; return the model and the names of its parts."""
    heads = 1 if group == "one" else HEADS // 2 if group else HEADS
    q, v = split(f, "x", HEADS), split(f, "x", heads)
    # A transpose merged with the split leaves no room for what needs the usual layout.
    merged = merged and not group and not rotary
    k = split(f, "x", heads)
    if merged:
        key = f.nodes[-1].input[0]
        k = f.nodes[-1].output[0]
        f.nodes[-1].attribute[0].CopyFrom(helper.make_attribute("perm", [0, 2, 3, 1]))
    query = q
    if rotary:
        q = query = rotated(f, q, rotary)
        if rotary != "pairs" or heads == HEADS:
            k = rotated(f, k, rotary)
    if group and group != "one":
        k, v = (repeated(f, each, group, heads, 2) for each in (k, v))
    if not merged:
        key = k
        k = f.op("Transpose", k, perm=[0, 1, 3, 2])
    part = {"scores": (), "query": "q", "key": "k", "both": "qk"}[place]
    by = SIZE ** (-0.25 if place == "both" else -0.5)
    if scale and "q" in part:
        q = scaled(f, q, scale, by)
    if scale and "k" in part:
        k = scaled(f, k, scale, by)
    s = f.op("MatMul", q, k)
    if scale and place == "scores":
        s = scaled(f, s, scale)
    inputs = {"x": ["batch", TOKENS, HEADS * SIZE]}
    if mask:
        s, more = masked(f, s, mask)
        inputs |= more
    p = f.op("Softmax", s, axis=-1)
    softmax = f.nodes[-1].name
    if guard:
        p = f.op("Where", f.op("IsNaN", p), f.const(0.0), p)
    y = f.op("MatMul", p, v)
    return f.model(inputs, y), {"query": query, "key": key, "value": v, "softmax": softmax}


@settings(max_examples=150, deadline=None)
@given(
    st.data(),
    st.sampled_from(SCALES),
    st.sampled_from(PLACES),
    st.sampled_from(MASKS),
    st.sampled_from(GROUPS),
    st.sampled_from(ROTARY),
    st.booleans(),
    st.booleans(),
)
def test_every_spelling(data, scale, place, mask, group, rotary, merged, guard):
    f = Formula(lambda n: data.draw(st.integers(0, n - 1)))
    if rotary == "pairs" and group:
        rotary = "Slice"
    proto, parts = block(f, scale, place, mask, group, rotary, merged, guard)
    found = only(proto)
    assert found.query.name == parts["query"] and found.key.name == parts["key"]
    assert found.value.name == parts["value"] and found.softmax.name == parts["softmax"]
    assert found.scores.op_type == found.context.op_type == "MatMul"
    assert found.context.outputs[0].is_graph_output()
    assert (found.mask is not None) == bool(mask)
    assert found.causal == mask.startswith("causal")
    assert found.rotary == bool(rotary)
    assert found.query_heads == HEADS
    assert found.key_heads == {"": HEADS, "one": 1}.get(group, HEADS // 2)


def test_the_mask_is_the_added_value_or_the_condition():
    proto, _ = block(Formula(), mask="Add")
    assert only(proto).mask.name == "mask"
    proto, _ = block(Formula(), mask="Where")
    assert only(proto).mask.producer().op_type == "Cast"


def test_of_two_masks_the_one_next_to_softmax_is_kept():
    proto, _ = block(Formula(), mask="causal Trilu and Add")
    found = only(proto)
    assert found.mask.name == "mask" and found.causal


@pytest.mark.parametrize("mask", ["Add", "Where", ""])
def test_other_masks_are_not_causal(mask):
    proto, _ = block(Formula(), mask=mask)
    assert not only(proto).causal


def test_constant_position_bias_is_not_causal():
    f = Formula()
    s = f.op("MatMul", split(f, "x", HEADS), split(f, "x", HEADS, (0, 2, 3, 1)))
    s = f.op("Add", s, f.const(RNG.standard_normal((HEADS, TOKENS, TOKENS))))
    y = f.op("MatMul", f.op("Softmax", s), split(f, "x", HEADS))
    found = only(f.model({"x": ["batch", TOKENS, HEADS * SIZE]}, y))
    assert found.mask is not None and not found.causal


def test_padding_compared_with_lengths_is_not_causal():
    f = Formula()
    s = f.op("MatMul", split(f, "x", HEADS), split(f, "x", HEADS, (0, 2, 3, 1)))
    cond = f.op("Less", positions(f), "length")
    y = f.op("MatMul", f.op("Softmax", f.op("Where", cond, s, f.const(-1e9))), split(f, "x", HEADS))
    proto = f.model(
        {"x": ["batch", TOKENS, HEADS * SIZE], "length": [1]}, y, types={"length": np.int64}
    )
    found = only(proto)
    assert found.mask is not None and not found.causal


def test_only_query_rotated_is_not_rotary():
    f = Formula()
    q = rotated(f, split(f, "x", HEADS), "Slice")
    y = f.op(
        "MatMul",
        f.op("Softmax", f.op("MatMul", q, split(f, "x", HEADS, (0, 2, 3, 1)))),
        split(f, "x", HEADS),
    )
    assert not only(f.model({"x": ["batch", TOKENS, HEADS * SIZE]}, y)).rotary


@pytest.mark.parametrize("how", ["both added", "turned another value"])
def test_what_only_looks_like_a_rotation(how):
    f = Formula()

    def near(x):
        first, second = halves(f, x, "Slice")
        cos, sin = f.const(RNG.standard_normal(SIZE // 2)), f.const(RNG.standard_normal(SIZE))
        if how == "both added":
            one, two = f.op("Mul", first, cos), f.op("Mul", second, cos)
            return f.op("Concat", f.op("Add", one, two), f.op("Add", two, one), axis=-1)
        turned = f.op("Concat", f.op("Neg", second), first, axis=-1)
        return f.op("Add", f.op("Mul", f.op("Exp", x), sin), f.op("Mul", turned, sin))

    q, k = near(split(f, "x", HEADS)), near(split(f, "x", HEADS))
    s = f.op("MatMul", q, f.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = f.op("MatMul", f.op("Softmax", s), split(f, "x", HEADS))
    assert not only(f.model({"x": ["batch", TOKENS, HEADS * SIZE]}, y)).rotary


def test_keys_from_a_cache():
    f = Formula()
    q, k, v = (split(f, "x", HEADS) for _ in range(3))
    q, k = (rotated(f, each, "Slice") for each in (q, k))
    k, v = f.op("Concat", "past_k", k, axis=2), f.op("Concat", "past_v", v, axis=2)
    s = f.op("MatMul", q, f.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = f.op("MatMul", f.op("Softmax", s), v)
    past = ["batch", HEADS, "past", SIZE]
    found = only(f.model({"x": ["batch", TOKENS, HEADS * SIZE], "past_k": past, "past_v": past}, y))
    assert found.rotary and found.key.name == k and found.value.name == v
    assert found.key_heads == found.query_heads == HEADS


def test_half_precision_with_softmax_in_float32():
    f = Formula(dtype=np.float16)
    s = f.op("MatMul", split(f, "x", HEADS), split(f, "x", HEADS, (0, 2, 3, 1)))
    p = f.op("Softmax", f.op("Cast", s, to=TensorProto.FLOAT))
    y = f.op("MatMul", f.op("Cast", p, to=TensorProto.FLOAT16), split(f, "x", HEADS))
    assert only(f.model({"x": ["batch", TOKENS, HEADS * SIZE]}, y)).query_heads == HEADS


def test_products_over_joined_batch_and_heads():
    f = Formula()
    flat = f.const([-1, TOKENS, SIZE], np.int64)
    q, k, v = (f.op("Reshape", split(f, "x", HEADS), flat) for _ in range(3))
    s = f.op("MatMul", q, f.op("Transpose", k, perm=[0, 2, 1]))
    s = f.op("Add", f.op("Reshape", s, f.const([-1, HEADS, TOKENS, TOKENS], np.int64)), "mask")
    p = f.op("Softmax", f.op("Reshape", s, f.const([-1, TOKENS, TOKENS], np.int64)))
    y = f.op("MatMul", p, v)
    found = only(
        f.model({"x": ["batch", TOKENS, HEADS * SIZE], "mask": ["batch", 1, 1, TOKENS]}, y)
    )
    assert found.query_heads == found.key_heads == HEADS and found.mask.name == "mask"


def test_transposed_products():
    f = Formula()

    def split_channels():
        return f.op("Reshape", "x", f.const([0, HEADS, SIZE, -1], np.int64))

    q = f.op("Transpose", split_channels(), perm=[0, 1, 3, 2])
    k, v = split_channels(), split_channels()
    p = f.op("Softmax", f.op("MatMul", q, k))
    y = f.op("MatMul", v, f.op("Transpose", p, perm=[0, 1, 3, 2]))
    found = only(f.model({"x": ["batch", HEADS * SIZE, 9]}, y))
    assert (found.value.name, found.key.name, found.query_heads) == (v, k, HEADS)


def test_one_head_without_a_split():
    f = Formula()
    s = f.op("MatMul", "q", f.op("Transpose", "k", perm=[0, 2, 1]))
    y = f.op("MatMul", f.op("Softmax", s), "v")
    shape = ["batch", TOKENS, SIZE]
    found = only(f.model({"q": shape, "k": shape, "v": shape}, y))
    assert found.query_heads == found.key_heads == 1


def test_weights_that_are_returned_as_well():
    f = Formula()
    p = f.op("Softmax", f.op("MatMul", "q", f.op("Transpose", "k", perm=[0, 2, 1])))
    shape = ["batch", TOKENS, SIZE]
    only(f.model({"q": shape, "k": shape, "v": shape}, f.op("MatMul", p, "v"), p))


def test_soft_cap_and_clamp():
    f = Formula()
    s = f.op("MatMul", "q", f.op("Transpose", "k", perm=[0, 2, 1]))
    s = f.op("Mul", f.op("Tanh", f.op("Div", s, f.const(50.0))), f.const(50.0))
    s = f.op("Max", f.op("Add", s, "mask"), f.const(-3e38))
    y = f.op("MatMul", f.op("Softmax", s), "v")
    shape = ["batch", TOKENS, SIZE]
    found = only(f.model({"q": shape, "k": shape, "v": shape, "mask": ["batch", 1, TOKENS]}, y))
    assert found.mask.name == "mask"


def test_unknown_heads_are_none():
    f = Formula()

    def free(x):
        return f.op("Reshape", x, "shape")

    s = f.op("MatMul", free("q"), f.op("Transpose", free("k"), perm=[0, 1, 3, 2]))
    y = f.op("ReduceMax", f.op("MatMul", f.op("Softmax", s, axis=-1), free("v")), keepdims=0)
    shape = ["batch", TOKENS, SIZE]
    found = only(
        f.model({"q": shape, "k": shape, "v": shape, "shape": [4]}, y, types={"shape": np.int64})
    )
    assert found.query_heads is None and found.key_heads is None


def test_blocks_in_graph_order_and_inside_subgraphs():
    f = Formula()
    first = f.op("MatMul", f.op("Softmax", f.op("MatMul", "x", "x")), "x")
    inner = Formula()
    inner.nodes = [
        helper.make_node("MatMul", [first, "x"], ["is"], name="is"),
        helper.make_node("Softmax", ["is"], ["ip"], name="inner"),
        helper.make_node("MatMul", ["ip", "x"], ["iy"], name="iy"),
    ]

    def body(name):
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [5, 5])
        return value

    then = helper.make_graph(inner.nodes, "then", [], [body("iy")])
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["same"])], "else", [], [body("same")]
    )
    f.nodes.append(helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other))
    found, _ = mark(f.model({"x": [5, 5], "flag": []}, "y", types={"flag": bool}))
    assert [each.softmax.name for each in found][1] == "inner" and len(found) == 2


# -- what is left alone ------------------------------------------------------------------------


def test_a_classifier_is_none():
    f = Formula()
    y = f.op("Softmax", f.op("MatMul", "x", f.const(RNG.standard_normal((8, 3)))))
    found, report = mark(f.model({"x": ["batch", 8]}, y))
    assert not found and not report.refused


def test_a_mixture_over_constants_is_none():
    f = Formula()
    p = f.op("Softmax", f.op("MatMul", "x", f.const(RNG.standard_normal((8, 3)))))
    found, report = mark(
        f.model({"x": ["batch", 8]}, f.op("MatMul", p, f.const(RNG.standard_normal((3, 5)))))
    )
    assert not found and not report.refused


def test_softmax_of_a_projection_is_refused():
    f = Formula()
    p = f.op("Softmax", f.op("MatMul", "x", f.const(RNG.standard_normal((8, 8)))))
    found, report = mark(f.model({"x": [8, 8]}, f.op("MatMul", p, "x")))
    assert not found
    assert [r.reason for r in report.refused] == [
        "what enters its Softmax is no product of two activations"
    ]


@pytest.mark.parametrize(("opset", "axis"), [(21, 0), (21, 1), (11, None), (11, 1)])
def test_softmax_over_another_axis_is_refused(opset, axis):
    f = Formula(opset=opset)
    more = {} if axis is None else {"axis": axis}
    p = f.op("Softmax", f.op("MatMul", "q", "k"), **more)
    shape = ["batch", 5, 5]
    found, report = mark(f.model({"q": shape, "k": shape}, f.op("MatMul", p, "k")))
    assert not found and "not known to be over the last axis" in report.refused[0].reason


@pytest.mark.parametrize("opset", [11, 13])
def test_softmax_over_the_last_axis_by_its_number(opset):
    f = Formula(opset=opset)
    p = f.op("Softmax", f.op("MatMul", "q", "k"), axis=2)
    shape = ["batch", 5, 5]
    only(f.model({"q": shape, "k": shape}, f.op("MatMul", p, "k")))


def test_additions_that_lead_nowhere_end_soon():
    f = Formula()
    x = "x"
    for _ in range(60):
        x = f.op("Add", x, x)
    y = f.op("MatMul", f.op("Softmax", x), "x")
    found, report = mark(f.model({"x": [4, 4]}, y))
    assert not found and len(report.refused) == 1


@given(
    st.integers(2, 6), st.integers(0, 4), st.sampled_from([(0, -1e9), (True, False), (0, -np.inf)])
)
def test_lower_triangular(queries, more, values):
    keys = queries + more
    kept, hidden = values
    j, i = np.arange(keys), np.arange(queries)[:, None]
    mask = np.where(j <= i + more, kept, hidden)
    assert is_lower_triangular(mask) and is_lower_triangular(mask[None, None])
    assert not is_lower_triangular(np.full_like(mask, kept))
    mask[-1, -1] = hidden
    assert not is_lower_triangular(mask)
    assert not is_lower_triangular(mask[:1])


# -- real models -------------------------------------------------------------------------------


def marked_after_upgrade(path):
    graph = onnx_io.load(path)
    onnx_io.upgrade_opset(graph, 21)
    for node in list(graph.nodes("Identity")):
        if not node.outputs[0].is_graph_output():
            graph.replace(node.outputs[0], node.inputs[0])
            graph.remove(node)
    onnx_io.infer_shapes(graph)
    MarkAttention().run(graph, None)
    return graph.facts.attention


def test_digits_vit():
    found = marked_after_upgrade(ROOT / "models" / "digits" / "digits_vit.onnx")
    assert [(b.query_heads, b.key_heads, b.mask, b.causal, b.rotary) for b in found] == [
        (4, 4, None, False, False)
    ] * 3


def test_minilm():
    found = marked_after_upgrade(shared("models", "minilm_l6_v2.onnx"))
    assert [(b.query_heads, b.key_heads, b.causal, b.rotary) for b in found] == [
        (12, 12, False, False)
    ] * 6
    assert len({b.mask for b in found}) == 1 and found[0].mask is not None


def test_text_recogniser():
    found = marked_after_upgrade(shared("models", "ppocrv6_rec_small.onnx"))
    assert [(b.query_heads, b.mask) for b in found] == [(8, None)] * 2
