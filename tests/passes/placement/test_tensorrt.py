"""Placement for TensorRT: what enters a fused unit is quantized, and nothing else."""

import numpy as np
import onnx
import pytest
from harness import interface, model, ops, run_reference
from quantsim import assert_simulated, quantize_model, samples

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.encoding import Spec
from qgraph.passes.plan import PlanQuantization
from qgraph.pipeline import Pipeline
from qgraph.target import target

# Operators that may read codes on this target.
EATERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Concat"}


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 4


WEIGHTS = {
    **{f"w{i}": rand(16, 16, 1, 1, seed=i) for i in range(1, 7)},
    "b": rand(16),
    "wide": rand(16, 32, 1, 1),
    "m": rand(32, 32),
    "n": rand(32, 32, seed=1),
    "alpha": np.float32(0.5),
    "one": np.float32(1),
    "sizes": np.array([1, 1, 2, 2], np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "index": np.array([1, 0, 3, 2]),
    "flat": np.array([1, 32, 32]),
}


def used(text, **others):
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {k: v for k, v in (WEIGHTS | others).items() if k in words}


def image(body, outputs="float[a,b,c,d] y", **others):
    text = f"g (float[1,16,8,8] x) => ({outputs}) {{ {body} }}"
    return model(text, used(text, **others))


def plan(proto, exclude=(), **options):
    graph = onnx_io.load(proto)
    context = Context(target=target("tensorrt"), exclude=exclude)
    Pipeline([PlanQuantization(**options)]).run(graph, context)
    found = graph.facts.plan
    assert set(found.nodes) == {n.name for n in graph.nodes()}
    values = {v.name for v in graph.inputs if v.dtype.name == "FLOAT"}
    values |= {o.name for n in graph.nodes() for o in n.outputs if o.dtype.name == "FLOAT"}
    assert set(found.activations) | set(found.floats) == values
    assert not set(found.activations) & set(found.floats)
    assert not found.writes and not found.biases and not found.absorbed
    return found


def reads(found):
    return {name: {i for n, i in found.reads if n == name} for name, _ in found.reads}


def check(proto, **options):
    """What holds for every model of this target, down to the inserted nodes and their numbers."""
    case = quantize_model(proto, hardware="tensorrt", **options)
    assert interface(case.after) == interface(proto)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in case.after.graph.initializer}
    makers = {o: n for n in case.after.graph.node for o in n.output}
    for node in case.after.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = arrays[node.input[2]]
            assert zero.dtype == np.int8 and not zero.any()
        else:
            for name in node.input:
                if name in makers and makers[name].op_type == "DequantizeLinear":
                    assert node.op_type in EATERS, node.op_type
    assert_simulated(case, proto, margin=1e-4)
    return case


# -- layers ----------------------------------------------------------------------------------------


def test_weights_have_a_scale_for_each_output_channel_and_biases_stay_in_float():
    text = """g (float[2,16,6,6] x, float[N,32] v) => (float[a,b,c,d] y, float[N,32] z) {
        c = Conv(x, w1, b)
        y = ConvTranspose<strides = [2,2]>(c, t, u)
        p = Gemm<transB = 1>(v, m)
        q = Gemm(p, n, e)
        z = MatMul(q, m)
    }"""
    proto = model(text, used(text, t=rand(16, 12, 2, 2), u=rand(12), e=rand(32)))
    case = check(proto)
    facts = case.facts
    axes = {name: place.spec.axis for (name, _), place in facts.plan.weights.items()}
    assert axes == {"c_Conv": 0, "y_ConvTranspose": 1, "p_Gemm": 0, "q_Gemm": 1, "z_MatMul": 1}
    shapes = {name: w.encoding.scale.shape for (name, _), w in facts.weights.items()}
    assert shapes["y_ConvTranspose"] == (1, 12, 1, 1) and shapes["q_Gemm"] == (1, 32)
    for node in case.after.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2:
            assert node.input[2] in ("b", "u", "e")
    assert all(p.spec == Spec("int8", symmetric=True) for p in facts.plan.activations.values())


def test_relu_and_clip_stay_in_the_graph_in_front_of_the_quantizer():
    case = check(image("a = Conv(x, w1, b)  r = Relu(a)  c = Conv(r, w2)  y = Sigmoid(c)"))
    assert ops(case.after).count("Relu") == 1
    assert case.facts.plan.nodes["r_Relu"] == (
        "fused",
        "computed in float inside the kernel of a_Conv",
    )
    assert case.facts.plan.floats == {
        "a": "inside the kernel of a_Conv",
        "c": "inside the kernel of c_Conv",
        "y": "graph output",
    }
    assert case.facts.plan.activations["r"].reason == "read by Conv c_Conv"


@pytest.mark.parametrize(
    ("body", "inside"),
    [
        ("s = Sigmoid(a)  g = Mul(a, s)", {"s_Sigmoid", "g_Mul"}),
        ("s = Sigmoid(a)  g = Mul(s, a)", {"s_Sigmoid", "g_Mul"}),
        ("s = HardSigmoid(a)  g = Mul(a, s)", {"s_HardSigmoid", "g_Mul"}),
        ("s = Mul(a, alpha)  g = Add(one, s)", {"s_Mul", "g_Add"}),
        ("g = HardSwish(a)", {"g_HardSwish"}),
        ("s = Sigmoid(a)  t = Exp(a)  g = Mul(t, s)", set()),
        ("s = Sigmoid(a)  t = Sigmoid(s)  g = Mul(a, t)", set()),
    ],
)
def test_what_a_kernel_takes_in(body, inside):
    found = plan(image(f"a = Conv(x, w1)  {body}  c = Conv(g, w2)  y = Exp(c)"))
    assert {n for n, (kind, _) in found.nodes.items() if kind == "fused"} == inside
    assert reads(found) == {"a_Conv": {0}, "c_Conv": {0}}


def test_a_value_that_is_read_twice_is_quantized_once():
    case = check(image("a = Conv(x, w1)  c = Conv(a, w2)  d = Conv(a, w3)  y = Mul(c, d)"))
    assert ops(case.after).count("QuantizeLinear") == 2


@pytest.mark.parametrize(
    ("text", "name", "why"),
    [
        ("(float[1,32] x) => (float[1,32] y) { y = MatMul(x, m) }", "y_MatMul", "with a vector"),
        ("(float[1,32] x) => (float[1,32] y) { y = Gemm(x, m) }", "y_Gemm", "with a vector"),
        ("(float[4,8] x) => (float[4,32] y) { y = MatMul(x, s) }", "y_MatMul", "depth 8, width 32"),
        ("(float[4,32] x) => (float[4,8] y) { y = Gemm<transB = 1>(x, s) }", "y_Gemm", "width 8"),
        (
            "(float[2,1,32] x, float[2,32,20] z) => (float[2,1,20] y) { y = MatMul(x, z) }",
            "y_MatMul",
            "with a vector",
        ),
        (
            "(float[2,20,8] x, float[2,8,20] z) => (float[2,20,20] y) { y = MatMul(x, z) }",
            "y_MatMul",
            "depth 8",
        ),
        (
            "(float[2,32] x, float[32,32] z) => (float[2,32] y) { y = Gemm(x, z) }",
            "y_Gemm",
            "both operands are activations",
        ),
        ("(float[32,4] x) => (float[32,4] y) { y = MatMul(m, x) }", "y_MatMul", "is a constant"),
    ],
)
def test_products_that_integers_make_no_faster(text, name, why):
    proto = model(f"g {text}", used(text, s=rand(8, 32)))
    found = plan(proto)
    assert found.nodes[name][0] == "float" and why in found.nodes[name][1]
    assert not found.activations


def test_a_head_with_a_free_batch_axis_is_quantized():
    text = "g (float[N,32] x) => (float[N,32] y) { y = Gemm(x, m) }"
    assert reads(plan(model(text, used(text)))) == {"y_Gemm": {0}}


def test_few_channels_are_an_option():
    proto = image("a = Conv(x, f)  c = Conv(a, w1)  y = Exp(c)", f=rand(16, 3, 1, 1))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    assert set(reads(plan(proto))) == {"a_Conv", "c_Conv"}
    found = plan(proto, min_channels=16)
    assert set(reads(found)) == {"c_Conv"}
    assert found.nodes["a_Conv"] == ("float", "fewer than 16 channels (plan.min_channels)")
    depthwise = image("a = Conv<group = 16>(x, d)  y = Exp(a)", d=rand(16, 1, 3, 3))
    assert set(reads(plan(depthwise, min_channels=16))) == {"a_Conv"}


def test_first_and_last_layer_can_be_kept():
    proto = image("a = Conv(x, w1)  b_ = Conv(a, w2)  c = Conv(b_, w3)  y = Exp(c)")
    assert set(reads(plan(proto, keep_first=True, keep_last=True))) == {"b__Conv"}


def test_a_grouped_transposed_convolution_stays_in_float():
    proto = image("a = ConvTranspose<group = 4>(x, t)  y = Exp(a)", t=rand(16, 4, 2, 2))
    assert "grouped" in plan(proto).nodes["a_ConvTranspose"][1]


# -- residual Adds ---------------------------------------------------------------------------------


def adds(body, exclude=()):
    """Which operands of Add z are quantized, and the plan."""
    found = plan(image(f"{body}  e = Conv(z, w6)  y = Exp(e)"), exclude)
    return reads(found).get("z_Add", set()), found


BLOCK = "i = Conv(x, w1)  a = Conv(i, w2)  r = Relu(a)  c = Conv(r, w3)"


@pytest.mark.parametrize(
    ("body", "quantized"),
    [
        (f"{BLOCK}  z = Add(c, i)", {1}),
        (f"{BLOCK}  z = Add(i, c)", {0}),
        ("a = Conv(x, w1)  z = Add(a, x)", {1}),
        ("a = Conv(x, w1)  z = Add(x, a)", {0}),
        # Two convolutions: the longer path to what both are computed from is the main one.
        (f"{BLOCK}  s = Conv(i, w4)  z = Add(c, s)", {1}),
        (f"{BLOCK}  s = Conv(i, w4)  z = Add(s, c)", {0}),
        ("s = Conv(x, w4)  a = Conv(x, w1)  c = Conv(a, w2)  z = Add(s, c)", {0}),
        ("i = Exp(x)  a = Conv(i, w1)  c = Conv(i, w2)  z = Add(a, c)", {0}),
        # Swish in front of the Add belongs to the kernel.
        ("a = Conv(x, w1)  s = Sigmoid(a)  g = Mul(a, s)  z = Add(g, x)", {1}),
        # The other operand is computed from the kernel's own result: both are written and read.
        ("a = Conv(x, w1)  h = Exp(a)  z = Add(a, h)", {0, 1}),
        # No kernel could add them.
        ("h = Exp(x)  z = Add(h, x)", set()),
        ("a = Conv(x, w1)  h = Relu(a)  s = Sigmoid(h)  g = Mul(h, s)  z = Add(g, g)", set()),
    ],
)
def test_which_operand_of_an_add_is_quantized(body, quantized):
    assert adds(body)[0] == quantized


def test_the_reasons_of_a_residual_add():
    quantized, found = adds(f"{BLOCK}  z = Add(c, i)")
    assert found.nodes["z_Add"] == ("int8", "the kernel of c_Conv adds the quantized shortcut")
    assert found.floats["c"] == "added to the shortcut in the kernel of c_Conv"
    assert quantized == {1}
    assert found.activations["i"].reason == "read by Conv a_Conv, read by Add z_Add"
    _, found = adds("h = Exp(x)  z = Add(h, x)")
    assert found.nodes["z_Add"] == ("float", "no convolution's kernel can add its operands")


def test_without_an_integer_convolution_there_is_nothing_to_add_to():
    quantized, found = adds("a = Conv(x, w1)  z = Add(a, x)", exclude=("a_Conv",))
    assert not quantized and found.nodes["z_Add"][0] == "float"
    quantized, found = adds("a = Conv(x, w1)  z = Add(a, x)", exclude=("Add",))
    assert not quantized and found.nodes["z_Add"] == ("float", "excluded by 'Add'")


def test_a_broadcasting_add_is_no_residual():
    quantized, found = adds("a = Conv(x, w1)  p = GlobalAveragePool(x)  z = Add(a, p)")
    assert not quantized and found.nodes["z_Add"] == ("float", "its operands differ in shape")


def test_residual_chains_hold_numerically():
    body = (
        "a = Conv(x, w1)  z = Add(a, x)  r = Relu(z)  c = Conv(r, w2)  t = Add(r, c)  y = Relu(t)"
    )
    case = check(image(body))
    assert reads(case.facts.plan)["t_Add"] == {0}


# -- operators that codes pass through -------------------------------------------------------------


def group(found):
    return {name: place.group for name, place in found.activations.items()}


def test_operands_and_result_of_concat_share_a_scale():
    body = "a = Conv(x, w1)  c = Conv(a, w2)  k_ = Concat<axis = 1>(a, c)  d = Conv(k_, wide)  y = Exp(d)"
    case = check(image(body))
    found = group(case.facts.plan)
    assert found["a"] == found["c"] == found["k_"] != found["x"]
    encodings = case.facts.encodings
    assert encodings["a"] is encodings["c"] is encodings["k_"]
    reason = case.facts.plan.activations["c"].reason
    assert reason == "read by Concat k__Concat; one scale with a, k_"


def test_a_concat_that_float_reads_stays_in_float():
    found = plan(image("a = Conv(x, w1)  k_ = Concat<axis = 1>(a, x)  y = Exp(k_)"))
    assert found.nodes["k__Concat"] == ("float", "its readers are in float")
    found = plan(image("a = Conv(x, w1)  y = Concat<axis = 1>(a, x)"))
    assert found.nodes["y_Concat"][1] == "its result is a graph output, which stays in float"


@pytest.mark.parametrize(
    ("node", "same"),
    [
        ("MaxPool<kernel_shape = [2,2]>(a)", True),
        ("Transpose<perm = [0,1,3,2]>(a)", True),
        ('Resize<mode = "nearest">(a, , sizes)', True),
        ('Resize<mode = "linear">(a, , sizes)', False),
        ("Pad(a, pads)", True),
        ("Pad(a, pads, one)", False),
        ('Pad<mode = "reflect">(a, pads)', True),
        ("Gather<axis = 2>(a, index)", True),
        ("AveragePool<kernel_shape = [2,2]>(a)", False),
    ],
)
def test_which_operators_hand_codes_on(node, same):
    # Both sides are read by convolutions, so both are quantized: by one scale, or each by its own.
    body = f"a = Conv(x, w1)  p = {node}  c = Conv(a, w2)  d = Conv(p, w3)  u = Exp(c)  y = Exp(d)"
    case = check(image(body, "float[a,b,c,d] y, float[e,f,g,h] u"))
    found = case.facts.plan
    assert (found.activations["a"].group == found.activations["p"].group) == same
    assert (found.nodes[f"p_{node.split('(')[0].split('<')[0]}"][0] == "int8") == same


def test_a_scale_is_shared_through_values_that_are_not_quantized():
    body = """a = Conv(x, w1)  t = Transpose<perm = [0,1,3,2]>(a)
        p = MaxPool<kernel_shape = [2,2]>(t)  c = Conv(a, w2)  d = Conv(p, w3)  u = Exp(c)  y = Exp(d)"""
    found = plan(image(body, "float[a,b,c,d] y, float[e,f,g,h] u"))
    assert "t" not in found.activations
    assert found.activations["a"].group == found.activations["p"].group


def test_a_table_that_is_gathered_from_stays_in_float():
    text = "g (int64[2,20] i) => (float[2,20,32] y) { e = Gather(m, i)  y = MatMul(e, n) }"
    found = plan(model(text, used(text)))
    assert found.nodes["e_Gather"] == ("float", "one operand is a constant")
    assert reads(found) == {"y_MatMul": {0}}


# -- attention -------------------------------------------------------------------------------------

ATTENTION = """g (float[2,20,32] q, float[2,32,20] k, float[2,20,32] v, float[2,20,20] mask)
    => (float[2,20,32] y) {
    s = MatMul(q, k)
    h = Mul(s, alpha)
    z = Add(h, mask)
    p = Softmax<axis = -1>(z)
    y = MatMul(p, v)
}"""


def test_attention():
    proto = model(ATTENTION, used(ATTENTION))
    case = quantize_model(proto, hardware="tensorrt")
    found = case.facts.plan
    assert reads(found) == {"s_MatMul": {0, 1}, "y_MatMul": {0, 1}}
    assert found.nodes["z_Add"] == (
        "float",
        "mask in front of a Softmax, which needs float's range",
    )
    assert found.nodes["p_Softmax"][0] == "float"
    assert found.activations["p"].known == (0.0, 1.0)
    assert found.activations["p"].reason == (
        "read by MatMul y_MatMul; its range is 0 to 1 on any data"
    )
    # The samples' largest probability is less; the scale is that of the whole range.
    assert case.facts.ranges["p"][1] < 1
    assert case.facts.encodings["p"].scale == np.float32(1 / 127)
    feeds = samples(proto, 1, seed=3)[0]
    want, got = run_reference(proto, feeds)["y"], run_reference(case.after, feeds)["y"]
    noise = float(np.square(want - got).sum())
    assert 20 < 10 * np.log10(float(np.square(want).sum()) / noise) < 40


def test_attention_can_be_left_in_float():
    found = plan(model(ATTENTION, used(ATTENTION)), attention=False)
    assert not found.activations
    assert found.nodes["s_MatMul"][1] == "product of two activations, kept by plan.attention"


def test_what_is_never_quantized():
    text = """g (float[N,20,32] x) => (float[N,20,32] y) {
        l = LayerNormalization(x, e, e)
        a = MatMul(l, m)
        g_ = Gelu(a)
        c = MatMul(g_, n)
        z = Add(c, x)
        s = Sigmoid(z)
        y = Softmax(s)
    }"""
    found = plan(model(text, used(text, e=rand(32))))
    left = {n: why for n, (kind, why) in found.nodes.items() if kind == "float"}
    assert set(left) == {"l_LayerNormalization", "g__Gelu", "z_Add", "s_Sigmoid", "y_Softmax"}
    assert left["z_Add"] == "no convolution's kernel can add its operands"
    assert reads(found) == {"a_MatMul": {0}, "c_MatMul": {0}}


def test_planning_twice_gives_the_same():
    proto = image(f"{BLOCK}  z = Add(c, i)  y = Exp(z)")
    assert plan(proto) == plan(proto)
