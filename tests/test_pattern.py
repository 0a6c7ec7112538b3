from itertools import permutations

import numpy as np
import onnx
import pytest
from harness import model
from hypothesis import given
from hypothesis import strategies as st

from qgraph import onnx_io
from qgraph.pattern import Pattern, activation, const, match, maybe, one_of, op, roots, scalar, var

CONV_BN = op.BatchNormalization(
    op.Conv(var("x"), const("w"), maybe("b"), bind="conv"),
    const("scale"),
    const("shift"),
    const("mean"),
    const("var"),
    bind="bn",
)
VEC = np.ones(2, np.float32)
PARAMS = {"s": VEC, "t": VEC, "m": VEC, "v": VEC, "w": np.ones((2, 1, 1, 1), np.float32)}
BN = "z = BatchNormalization(c, s, t, m, v)"


def graph_of(proto: onnx.ModelProto):  # type: ignore[no-untyped-def]
    graph = onnx_io.load(proto)
    return graph, {node.outputs[0].name: node for node in graph.nodes()}


def test_binds_values_and_nodes_and_leaves_out_what_is_omitted() -> None:
    text = f"g (float[1,1,4,4] x) => (float[1,2,4,4] z) {{ c = Conv(x, w) {BN} }}"
    graph, nodes = graph_of(model(text, PARAMS))
    found = match(graph, CONV_BN, nodes["z"])
    assert found is not None
    assert found.value("x").name == "x"
    assert found.node("conv") is nodes["c"]
    assert "b" not in found
    assert found.nodes == (nodes["z"], nodes["c"])
    np.testing.assert_array_equal(found.array("w"), PARAMS["w"])


@pytest.mark.parametrize(
    ("extra", "outputs"),
    [
        ("y = Relu(c)", "float[1,2,4,4] z, float[1,2,4,4] y"),
        ("", "float[1,2,4,4] z, float[1,2,4,4] c"),
    ],
    ids=["second reader", "graph output"],
)
def test_interior_values_seen_from_outside_never_match(extra: str, outputs: str) -> None:
    text = f"g (float[1,1,4,4] x) => ({outputs}) {{ c = Conv(x, w) {BN} {extra} }}"
    graph, nodes = graph_of(model(text, PARAMS))
    assert match(graph, CONV_BN, nodes["z"]) is None


def test_a_value_read_inside_a_subgraph_is_seen_from_outside() -> None:
    text = f"""g (float[1,1,4,4] x, bool k) => (float[1,2,4,4] z, float[1,2,4,4] y) {{
        c = Conv(x, w) {BN}
        y = If(k) <then_branch = a () => (float[1,2,4,4] p) {{ p = Relu(c) }},
                   else_branch = b () => (float[1,2,4,4] q) {{ q = Neg(z) }}>
    }}"""
    graph, nodes = graph_of(model(text, PARAMS))
    assert match(graph, CONV_BN, nodes["z"]) is None


def test_interior_values_may_have_several_readers_inside_the_match() -> None:
    pattern = op.Mul(op.Sub(var("x"), const("c"), bind="d"), op.Sub(var("x"), const("c"), bind="d"))
    text = "g (float[2] x) => (float[2] z) { d = Sub(x, s) z = Mul(d, d) }"
    graph, nodes = graph_of(model(text, {"s": VEC}))
    assert match(graph, pattern, nodes["z"]) is not None


@given(order=st.permutations(range(2)), inner=st.permutations(range(2)), kind=st.sampled_from("MA"))
def test_both_operand_orders_of_commutative_operators(
    order: list[int], inner: list[int], kind: str
) -> None:
    name = {"M": "Mul", "A": "Add"}[kind]
    operands = [["h", "s"][i] for i in order]
    factors = [["x", "t"][i] for i in inner]
    text = (
        f"g (float[2] x) => (float[2] z) {{ h = {name}({', '.join(factors)}) "
        f"z = {name}({', '.join(operands)}) }}"
    )
    maker = getattr(op, name)
    pattern: Pattern = maker(maker(activation("x"), const("t")), const("s"))
    graph, nodes = graph_of(model(text, {"s": VEC, "t": 2 * VEC}))
    found = match(graph, pattern, nodes["z"])
    assert found is not None
    assert (found.value("x").name, found.value("s").name, found.value("t").name) == ("x", "s", "t")


def test_order_matters_elsewhere() -> None:
    graph, nodes = graph_of(model("g (float[2] x) => (float[2] z) { z = Sub(s, x) }", {"s": VEC}))
    assert match(graph, op.Sub(activation("x"), const("s")), nodes["z"]) is None
    assert match(graph, op.Sub(const("s"), activation("x")), nodes["z"]) is not None


def test_the_same_name_is_the_same_value() -> None:
    pattern = op.Add(var("a"), var("a"))
    graph, nodes = graph_of(model("g (float[2] x) => (float[2] z) { z = Add(x, x) }"))
    assert match(graph, pattern, nodes["z"]) is not None
    graph, nodes = graph_of(model("g (float[2] x, float[2] y) => (float[2] z) { z = Add(x, y) }"))
    assert match(graph, pattern, nodes["z"]) is None


def test_alternatives_backtrack() -> None:
    inner = one_of(op.Relu(var("y")), op.Neg(var("y")))
    pattern = op.Add(inner, op.Neg(var("y")))
    graph, nodes = graph_of(
        model("g (float[2] x) => (float[2] z) { a = Neg(x) b = Relu(x) z = Add(a, b) }")
    )
    assert match(graph, pattern, nodes["z"]) is not None


@pytest.mark.parametrize(("value", "fits"), [(0.5, True), (0.50001, True), (0.51, False)])
def test_scalars_match_within_half_precision(value: float, fits: bool) -> None:
    proto = model("g (float[2] x) => (float[2] z) { z = Mul(x, s) }", {"s": np.float32(value)})
    graph, nodes = graph_of(proto)
    assert (match(graph, op.Mul(var("x"), scalar(0.5)), nodes["z"]) is not None) is fits


def test_a_vector_is_no_scalar() -> None:
    graph, nodes = graph_of(
        model("g (float[2] x) => (float[2] z) { z = Mul(x, s) }", {"s": 0.5 * VEC})
    )
    assert match(graph, op.Mul(var("x"), scalar(0.5)), nodes["z"]) is None


def test_used_second_outputs_never_match() -> None:
    text = "g (float[2] x) => (float[2] z, int64[2] i) { z, i = TopK(x, k) }"
    graph, nodes = graph_of(model(text, {"k": np.array([2], np.int64)}))
    assert match(graph, op.TopK(var("x"), const("k")), nodes["z"]) is None


def test_further_inputs_need_open() -> None:
    graph, nodes = graph_of(
        model("g (float[2] x, float[2] y) => (float[4] z) { z = Concat<axis=0>(x, y) }")
    )
    assert match(graph, op.Concat(var("x")), nodes["z"]) is None
    assert match(graph, op.Concat(var("x"), open=True), nodes["z"]) is not None


def test_other_domains_never_match() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
    g (float[2] x) => (float[2] z) { z = mine.Relu(x) }"""
    graph, nodes = graph_of(onnx.parser.parse_model(text))
    assert match(graph, op.Relu(var("x")), nodes["z"]) is None
    assert match(graph, op.Relu(var("x"), domain="mine"), nodes["z"]) is not None


def test_overridable_initializers_are_no_constants() -> None:
    text = "g (float[2] x, float[2] s) => (float[2] z) { z = Mul(x, s) }"
    graph, nodes = graph_of(model(text, {"s": VEC}))
    assert match(graph, op.Mul(var("x"), const("s")), nodes["z"]) is None


def test_roots() -> None:
    assert roots(one_of(op.Relu(var("x")), op.any_of("Clip", "Elu")(var("x")))) == {
        "Relu",
        "Clip",
        "Elu",
    }
    with pytest.raises(TypeError, match="operator"):
        roots(var("x"))


def test_long_chains_match_in_every_order() -> None:
    for order in permutations(["s", "t", "m"]):
        first, second, third = order
        body = f"a = Add(x, {first}) b = Add({second}, a) z = Add(b, {third})"
        text = f"g (float[2] x) => (float[2] z) {{ {body} }}"
        graph, nodes = graph_of(model(text, {"s": VEC, "t": VEC, "m": VEC}))
        pattern = op.Add(op.Add(op.Add(activation("x"), const("p")), const("q")), const("r"))
        found = match(graph, pattern, nodes["z"])
        assert found is not None
        assert [found.value(n).name for n in "pqr"] == list(order)
