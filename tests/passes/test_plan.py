import re

import numpy as np
import pytest
from harness import model

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.encoding import Spec
from qgraph.errors import UsageError
from qgraph.passes.plan import PlanQuantization, clip_bounds, weight_axis
from qgraph.pipeline import Pipeline
from qgraph.target import target


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plan(text, weights=None, exclude=(), **options):
    proto = text if not isinstance(text, str) else model(text, weights)
    graph = onnx_io.load(proto)
    before = onnx_io.to_proto(graph).graph.node
    report = (
        Pipeline([PlanQuantization(**options)])
        .run(graph, Context(target=target("cpu"), exclude=exclude))[0]
        .report
    )
    after = onnx_io.to_proto(graph).graph.node
    assert [list(n.input) for n in before] == [list(n.input) for n in after], "the plan rewrote"
    return graph.facts.plan, report


def reason(found, name):
    precision, why = found.nodes[name]
    assert precision == "float"
    return why


CONV = {"w": rand(4, 3, 3, 3), "b": rand(4), "v": rand(5, 4, 1, 1)}
CONVS = """g (float[1,3,6,6] x) => (float[1,5,4,4] y) {
    a = Conv(x, w, b)
    r = Relu(a)
    c = Conv(r, v)
    y = Sigmoid(c)
}"""


def test_every_node_and_every_float_value_has_its_reason():
    found, report = plan(CONVS, CONV)
    assert {k: v[0] for k, v in found.nodes.items()} == {
        "a_Conv": "int8",
        "r_Relu": "uint8",
        "c_Conv": "int8",
        "y_Sigmoid": "float",
    }
    assert reason(found, "y_Sigmoid") == "float activation function"
    assert set(found.activations) == {"x", "r", "c"}
    assert found.writes == {"r", "c"}
    assert found.reads == {("a_Conv", 0), ("c_Conv", 0)}
    assert set(found.weights) == {("a_Conv", 1), ("c_Conv", 1)}
    assert set(found.biases) == {("a_Conv", 2)}
    assert found.absorbed == {"r_Relu": (0.0, float("inf"))}
    assert found.floats == {
        "a": "inside a fused unit, or read by float operators only",
        "y": "graph output",
    }
    assert [(r.where, r.reason) for r in report.refused] == [
        ("y_Sigmoid", "float activation function")
    ]


def test_the_specs_are_the_targets():
    found, _ = plan(CONVS, CONV)
    assert all(p.spec == Spec("uint8", symmetric=False) for p in found.activations.values())
    assert found.weights["a_Conv", 1].spec == Spec("int8", True, axis=0, narrow=True)
    assert found.biases["a_Conv", 2].spec == Spec("int32")


def test_the_weight_axis_runs_over_output_channels():
    text = """g (float[4,8] x) => (float[4,5] p, float[4,5] q, float[4,5] r) {
        p = Gemm(x, w)  q = Gemm<transB = 1>(x, t)  r = MatMul(x, w)
    }"""
    found, _ = plan(text, {"w": rand(8, 5), "t": rand(5, 8)})
    axes = {name: place.spec.axis for (name, _), place in found.weights.items()}
    assert axes == {"p_Gemm": 1, "q_Gemm": 0, "r_MatMul": 1}
    graph = onnx_io.load(
        model(
            "g (float[1,4,6,6] x) => (float[a,b,c,d] y) { y = ConvTranspose(x, w) }",
            {"w": rand(4, 5, 2, 2)},
        )
    )
    assert weight_axis(next(graph.nodes())) == 1


def test_nodes_without_names_get_their_own():
    text = "g (float[4,8] x) => (float[4,8] y) { a = MatMul(x, w)  y = MatMul(a, w) }"
    proto = model(text, {"w": rand(8, 8)})
    assert all(not n.name for n in proto.graph.node)
    found, _ = plan(proto)
    assert set(found.weights) == {("a_MatMul", 1), ("y_MatMul", 1)}
    for node in proto.graph.node:
        node.name = "same"
    found, _ = plan(proto)
    assert set(found.weights) == {("same", 1), ("y_MatMul", 1)}


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "weights", "name", "why"),
    [
        (
            "g (float[1,3,6,6] x, float[4,3,3,3] w) => (float[a,b,c,d] y) { z = Conv(x, w)  y = Exp(z) }",
            {},
            "z_Conv",
            "both operands are activations",
        ),
        (
            "g (float[1,3,6,6] x, float[4] b) => (float[a,b,c,d] y) { z = Conv(x, w, b)  y = Exp(z) }",
            {"w": rand(4, 3, 3, 3)},
            "z_Conv",
            "its bias is computed",
        ),
        (
            "g (float[1,3,6,6] x) => (float[a,b,c,d] y) { y = Conv(x, w) }",
            {"w": rand(4, 3, 3, 3)},
            "y_Conv",
            "its result is a graph output, which stays in float",
        ),
        (
            "g (float[1,3,6,6] x) => (float[a,b,c,d] y) { z = Conv(x, w)  y = Relu(z) }",
            {"w": rand(4, 3, 3, 3)},
            "z_Conv",
            "its result is a graph output, which stays in float",
        ),
        (
            "g (float[1,3,6,6] x) => (float[a,b,c,d] y) { z = Conv(x, w)  y = Exp(z) }",
            {"w": np.full((4, 3, 3, 3), np.nan, np.float32)},
            "z_Conv",
            "its weight is not finite",
        ),
        (
            "g (float[1,3,6,6] x) => (float[a,b,c,d] y) { z = Conv(x, w, b)  y = Exp(z) }",
            {"w": rand(4, 3, 3, 3), "b": np.array([1, np.inf, 0, 0], np.float32)},
            "z_Conv",
            "its bias is not finite",
        ),
        (
            "g (float[2,3,4] x) => (float[2,3,5] y) { y = MatMul(x, w) }",
            {"w": rand(2, 4, 5)},
            "y_MatMul",
            "its weight does not have two axes",
        ),
        (
            "g (float[4,5] x) => (float[3,5] y) { y = MatMul(w, x) }",
            {"w": rand(3, 4)},
            "y_MatMul",
            "both operands are activations",
        ),
        (
            "g (float[3,4] x) => (float[3,5] y) { y = Gemm<alpha = 2.0>(x, w) }",
            {"w": rand(4, 5)},
            "y_Gemm",
            "Gemm with alpha, beta or transA",
        ),
        (
            "g (float[3,4] x) => (float[3,5] y) { y = Gemm(x, w, b) }",
            {"w": rand(4, 5), "b": rand(3, 5)},
            "y_Gemm",
            "its bias is not one value a channel",
        ),
        (
            "g (float16[3,4] x) => (float16[3,5] y) { y = MatMul(x, w) }",
            {"w": rand(4, 5).astype(np.float16)},
            "y_MatMul",
            "works on float16, not float32",
        ),
        (
            "g (double[3,4] x) => (double[3,5] y) { y = MatMul(x, w) }",
            {"w": rand(4, 5).astype(np.float64)},
            "y_MatMul",
            "works on double, not float32",
        ),
        (
            "g (float[1,3,6,6] x) => (float[a,b,c,d] y) { z = Add(x, x)  y = Exp(z) }",
            {},
            "z_Add",
            "no operand arrives quantized",
        ),
        (
            "g (float[1,3,6,6] x) => (float[a,b,c,d] y) { c = Conv(x, w)  z = Mul(c, k)  y = Exp(z) }",
            {"w": rand(4, 3, 3, 3), "k": np.float32(2)},
            "z_Mul",
            "one operand is a constant",
        ),
        (
            "g (float[1,3,6,6] x) => (float[a,b,c,d] y) { c = Conv(x, w)  y = Concat<axis = 1>(c, x) }",
            {"w": rand(4, 3, 1, 1)},
            "y_Concat",
            "its result is a graph output, which stays in float",
        ),
        (
            "g (float[1,3,6,6] x) => (float[a,b,c,d] y) { c = Conv(x, w) z = Concat<axis=1>(c, x) y = Exp(z) }",
            {"w": rand(4, 3, 1, 1)},
            "z_Concat",
            "not every operand arrives quantized",
        ),
        (
            "g (float[1,3,6,6] x) => (float[a,b,c,d] y) { z = ConvTranspose(x, w)  y = Exp(z) }",
            {"w": rand(3, 4, 3, 3)},
            "z_ConvTranspose",
            "onnxruntime's CPU provider has no integer ConvTranspose",
        ),
        (
            "g (float[3,4] x) => (float[3,4] y) { y = Erf(x) }",
            {},
            "y_Erf",
            "target cpu has no integer Erf",
        ),
    ],
)
def test_refusals(text, weights, name, why):
    found, report = plan(text, weights)
    assert reason(found, name) == why
    assert (name, 1) not in found.weights and (name, 0) not in found.reads
    assert name in [r.where for r in report.refused]


def test_custom_operators():
    text = """<ir_version: 10, opset_import: ["" : 21, "my" : 1]>
    g (float[3,4] x) => (float[3,4] y) { y = my.Conv(x) }"""
    found, _ = plan(text)
    assert reason(found, "y_Conv") == "custom operator of domain 'my'"


def test_a_second_output_in_use():
    text = """g (float[1,3,6,6] x) => (float[1,4,3,3] y, int64[1,4,3,3] i) {
        c = Conv(x, w)
        p, i = MaxPool<kernel_shape = [2,2], strides = [2,2]>(c)
        y = Exp(p)
    }"""
    found, _ = plan(text, {"w": rand(4, 3, 1, 1)})
    assert reason(found, "p_MaxPool") == "its second output is used"


def test_integer_arithmetic_is_left_alone():
    text = """g (float[1,3,6,6] x, int64[4] i) => (float[1,4,6,6] y, int64[4] j) {
        c = Conv(x, w)  y = Exp(c)  j = Add(i, i)
    }"""
    found, _ = plan(text, {"w": rand(4, 3, 1, 1)})
    assert reason(found, "j_Add") == "works on int64, not float32"


def test_overridable_weights_are_activations():
    text = "g (float[4,8] x, float[8,5] w) => (float[4,5] y) { y = MatMul(x, w) }"
    found, _ = plan(text, {"w": rand(8, 5)})
    assert reason(found, "y_MatMul") == "both operands are activations"


def test_excluded_by_name_and_by_operator():
    found, _ = plan(CONVS, CONV, exclude=("c_*",))
    assert reason(found, "c_Conv") == "excluded by 'c_*'"
    assert found.nodes["a_Conv"][0] == "int8"
    found, _ = plan(CONVS, CONV, exclude=("Conv",))
    assert not found.activations and not found.weights
    assert reason(found, "r_Relu") == "target cpu has no integer Relu"


def test_first_and_last_layers_can_be_kept():
    found, _ = plan(CONVS, CONV, keep_first=True)
    assert reason(found, "a_Conv") == "first layer, kept by plan.keep_first"
    assert found.nodes["c_Conv"][0] == "int8"
    found, _ = plan(CONVS, CONV, keep_last=True)
    assert reason(found, "c_Conv") == "last layer, kept by plan.keep_last"
    assert found.nodes["a_Conv"][0] == "int8"


def test_it_needs_a_target_and_a_float_graph():
    graph = onnx_io.load(model(CONVS, CONV))
    with pytest.raises(UsageError, match="plan needs a target"):
        Pipeline([PlanQuantization()]).run(graph)
    graph.facts.quantized = True
    with pytest.raises(UsageError, match="quantized already"):
        Pipeline([PlanQuantization()]).run(graph, Context(target=target("cpu")))


def test_planning_twice_gives_the_same():
    graph = onnx_io.load(model(CONVS, CONV))
    context = Context(target=target("cpu"))
    plans = []
    for _ in range(2):
        Pipeline([PlanQuantization()]).run(graph, context)
        plans.append(graph.facts.plan)
    assert plans[0] == plans[1] and plans[0] is not plans[1]


# -- groups, tails, chains ---------------------------------------------------------------------


def test_values_that_codes_pass_through_share_a_group():
    text = """g (float[1,3,6,6] x) => (float[1,4] y) {
        a = Conv(x, w)
        c = Conv(x, w)
        k = Concat<axis = 1>(a, c)
        p = MaxPool<kernel_shape = [2,2]>(k)
        t = Transpose<perm = [0,2,3,1]>(p)
        z = Conv(a, v)
        g = GlobalAveragePool(k)
        f = Flatten(g)
        y = Gemm(f, m)
        s = Sigmoid(z)
    }"""
    found, _ = plan(text, {"w": rand(4, 3, 1, 1), "v": rand(5, 4, 1, 1), "m": rand(8, 4)})
    group = {name: place.group for name, place in found.activations.items()}
    assert group["a"] == group["c"] == group["k"]
    assert group["g"] == group["f"] != group["k"]
    assert len({group["x"], group["z"], group["k"], group["g"]}) == 4
    # Nobody reads the end of MaxPool and Transpose in integers, so both give up.
    assert reason(found, "t_Transpose") == "its readers are in float"
    assert reason(found, "p_MaxPool") == "its readers are in float"
    assert "p" not in found.activations


def linear(body, outputs="float[a,b] y"):
    weights = {
        "w": rand(8, 8),
        "u": rand(8, 8, seed=1),
        "b": rand(8),
        "lo": np.float32(0),
        "s": np.array([8, 8]),
    }
    text = f"g (float[8,8] x) => ({outputs}) {{ {body} }}"
    used = {k: v for k, v in weights.items() if re.search(rf"\b{k}[,)]", body)}
    return plan(text, used)[0]


def test_a_linear_result_that_only_integers_read_is_quantized():
    found = linear("a = Gemm(x, w, b)  r = Relu(a)  y = MatMul(r, u)")
    assert found.writes == {"r"} and "r_Relu" in found.absorbed
    found = linear("a = MatMul(x, w)  y = Gemm(a, u)")
    assert found.writes == {"a"}
    found = linear("a = MatMul(x, w)  p = MatMul(a, u)  q = Gemm(a, u)  y = Add(p, q)")
    assert found.writes == {"a"}


def test_through_pass_through_operators_too():
    found = linear("a = MatMul(x, w)  t = Transpose(a)  r = Reshape(t, s)  y = MatMul(r, u)")
    assert found.writes == {"a", "t", "r"}
    groups = {found.activations[name].group for name in ("a", "t", "r")}
    assert len(groups) == 1


@pytest.mark.parametrize(
    "body",
    [
        "a = MatMul(x, w)  y = Exp(a)",
        "a = MatMul(x, w)  e = Exp(a)  p = MatMul(a, u)  y = Add(e, p)",
        "a = MatMul(x, w)  r = Relu(a)  e = Exp(r)  p = MatMul(r, u)  y = Add(e, p)",
        "a = MatMul(x, w)  r = Relu(a)  p = MatMul(r, u)  y = Add(a, p)",
        "a = MatMul(x, w)  t = Transpose(a)  y = Exp(t)",
        "a = MatMul(x, w)  y = MatMul(a, a)",
        "a = MatMul(x, w)  y = MatMul(u, a)",
        "a = MatMul(x, w)  y = Add(a, x)",
    ],
)
def test_a_linear_result_that_anything_else_reads_stays_in_float(body):
    found = linear(body)
    assert not {"a", "r", "t"} & found.writes
    assert not found.absorbed


def test_a_linear_result_that_is_a_graph_output_stays_in_float():
    found = linear("a = MatMul(x, w)  y = MatMul(a, u)", "float[8,8] a, float[8,8] y")
    assert not found.writes and ("y_MatMul", 0) in found.reads
    found = linear("a = MatMul(x, w)  r = Relu(a)  y = MatMul(r, u)", "float[8,8] r, float[8,8] y")
    assert not found.writes and not found.absorbed


def test_excluding_the_reader_leaves_the_result_in_float():
    text = "g (float[4,8] x) => (float[4,8] y) { a = MatMul(x, w)  y = MatMul(a, w) }"
    found, _ = plan(text, {"w": rand(8, 8)}, exclude=("y_*",))
    assert not found.writes and found.nodes["a_MatMul"][0] == "int8"


@pytest.mark.parametrize(
    ("node", "bounds"),
    [
        ("Relu(x)", (0, np.inf)),
        ("Clip(x)", (-np.inf, np.inf)),
        ("Clip(x, lo)", (-1, np.inf)),
        ("Clip(x, , hi)", (-np.inf, 6)),
        ("Clip(x, lo, hi)", (-1, 6)),
        ("Clip(x, m)", None),
        ("Elu(x)", None),
    ],
)
def test_clip_bounds(node, bounds):
    text = f"g (float[4] x, float m) => (float[4] y) {{ y = {node} }}"
    constants = {k: v for k, v in {"lo": np.float32(-1), "hi": np.float32(6)}.items() if k in node}
    graph = onnx_io.load(model(text, constants))
    assert clip_bounds(graph, next(graph.nodes())) == bounds


def test_bodies_of_other_nodes_are_not_planned():
    text = """g (bool c, float[4,8] x) => (float[4,8] y) {
        y = If (c) <
            then_branch = t () => (float[4,8] p) { p = MatMul(x, w) },
            else_branch = e () => (float[4,8] q) { q = Relu(x) }
        >
    }"""
    found, _ = plan(text, {"w": rand(8, 8)})
    assert not found.weights and not found.activations
    assert reason(found, "y_If") == "target cpu has no integer If"
