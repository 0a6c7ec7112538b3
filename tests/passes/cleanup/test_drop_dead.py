"""What nobody reads goes; what a caller sees stays."""

import numpy as np
import onnx
import onnx.parser
from harness import apply, check_fires, check_stays, model, ops, run_reference
from onnx import helper

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.passes.cleanup.drop_dead import DropDead


def test_chains_that_lead_nowhere() -> None:
    proto = model(
        """g (float[2] x, float[2] unread) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {1, 2}> {
          y = Add (x, w)
          a = Mul (x, v)
          b = Neg (a)
          c, d = Split <num_outputs = 2> (b)
        }"""
    )
    out = check_fires(DropDead(), proto, changed=4)
    assert ops(out) == ["Add"] and [t.name for t in out.graph.initializer] == ["w"]
    assert [v.name for v in out.graph.input] == ["x", "unread"]


def test_nothing_dead() -> None:
    check_stays(DropDead(), model("g (float[2] x) => (float[2] y) { y = Neg (x) }"))


def test_constants_that_are_outputs_or_defaults_stay() -> None:
    proto = model(
        """g (float[2] x, float[2] d) => (float[2] y, float[2] k)
        <float[2] d = {1, 2}, float[2] k = {3, 4}> { y = Neg (x) }"""
    )
    check_stays(DropDead(), proto)


def test_optional_outputs() -> None:
    proto = model(
        """g (float[1, 1, 4] x, float[1, 8, 4] w, float[1, 8, 2] r) =>
          (float[1, 1, 2] y, float[1, 1, 2] c, float[1, 1, 4] n) {
          y, i = MaxPool <kernel_shape = [2], strides = [2]> (x)
          s, h, c = LSTM <hidden_size = 2> (x, w, r)
          n, mean, inv = LayerNormalization (x, g)
        }""",
        {"g": np.ones(4, np.float32)},
    )
    out = check_fires(DropDead(), proto, changed=5)
    assert [list(n.output) for n in out.graph.node] == [["y"], ["", "", "c"], ["n"]]


def test_outputs_that_are_not_optional_stay() -> None:
    proto = model(
        """g (float[4] x) => (float[2] y, int64[2] i) {
          y, a = Split <num_outputs = 2> (x)
          v, i = TopK (x, k)
        }""",
        {"k": np.array([2])},
    )
    check_stays(DropDead(), proto)


def test_dead_ifs_free_what_their_bodies_read() -> None:
    proto = model(
        """g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
          a = Abs (x)
          b = Neg (a)
          u = If (c) <then_branch = d () => (float[2] p) { p = Add (b, w) },
                      else_branch = e () => (float[2] q) { q = Neg (b) }>
          y = Relu (x)
        }"""
    )
    out = check_fires(DropDead(), proto)
    assert ops(out) == ["Relu"] and not out.graph.initializer


def test_dead_nodes_of_live_bodies() -> None:
    proto = model(
        """g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
          onlyread = Abs (x)
          y = If (c) <
            then_branch = d () => (float[2] p) <float[2] k = {1, 2}> {
              dead = Add (onlyread, w)
              deader = Mul (dead, k)
              p = Neg (x)
            },
            else_branch = e () => (float[2] q) { q = Neg (x) }>
        }"""
    )
    out = check_fires(DropDead(), proto, changed=5)
    assert ops(out) == ["If"] and not out.graph.initializer
    assert all(len(attr.g.node) == 1 for attr in out.graph.node[0].attribute)


def test_loop_bodies_keep_what_the_loop_carries() -> None:
    proto = model(
        """g (float[2] x, int64 n, bool c) => (float[2] y) {
          y, z = Loop (n, c, x, x) <
            body = l (int64 i, bool go, float[2] a, float[2] b)
              => (bool more, float[2] a1, float[2] b1) {
              more = Identity (go)
              a1 = Neg (a)
              b1 = Abs (b)
              dead = Relu (b)
            }>
        }"""
    )
    out = check_fires(DropDead(), proto, changed=1)
    assert len(out.graph.node[0].attribute[0].g.node) == 3


def test_unknown_operators_may_have_effects() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "acme" : 1, "unused" : 3]>
    g (float[2] x) => (float[2] y) { p = acme.Print (x)  y = Neg (x) }"""
    out, (report,), _ = apply(DropDead(), onnx.parser.parse_model(text))
    assert ops(out) == ["Print", "Neg"]
    assert report.details == ["import of unused"]
    assert [o.domain for o in out.opset_import] == ["", "acme"]


def functions() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    made = [
        helper.make_function(
            "f",
            "Outer",
            ["a"],
            ["b"],
            [helper.make_node("Inner", ["a"], ["b"], domain="f")],
            opsets,
        ),
        helper.make_function(
            "f", "Inner", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], opsets[:1]
        ),
        helper.make_function(
            "f",
            "Unused",
            ["a"],
            ["b"],
            [helper.make_node("Other", ["a"], ["b"], domain="h")],
            [helper.make_opsetid("h", 1)],
        ),
    ]
    nodes = [
        helper.make_node("Outer", ["x"], ["y"], domain="f", name="live"),
        helper.make_node("Outer", ["x"], ["z"], domain="f", name="dead"),
    ]
    infos = [helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:])
    return helper.make_model(
        graph, opset_imports=[*opsets, helper.make_opsetid("h", 1)], ir_version=10, functions=made
    )


def test_functions() -> None:
    out = check_fires(DropDead(), functions(), changed=3)
    assert [f.name for f in out.functions] == ["Outer", "Inner"]
    assert [n.name for n in out.graph.node] == ["live"]
    assert [o.domain for o in out.opset_import] == ["", "f"]


def test_sparse_constants() -> None:
    proto = model("g (float[4] x) => (float[4] y) { t = Relu (x)  y = Neg (t) }")
    proto.graph.node[1].op_type = "Add"
    proto.graph.node[1].input.append("read")
    for name in ("read", "unread"):
        values = helper.make_tensor(name, 1, [1], [5.0])
        sparse = helper.make_sparse_tensor(values, helper.make_tensor("", 7, [1], [2]), [4])
        proto.graph.sparse_initializer.append(sparse)
    graph = onnx_io.load(proto)
    assert DropDead().run(graph, Context()).changed == 1
    out = onnx_io.to_proto(graph)
    assert [t.values.name for t in out.graph.sparse_initializer] == ["read"]
    got = run_reference(out, {"x": np.zeros(4, np.float32)})["y"]
    np.testing.assert_array_equal(got, [0, 0, 5, 0])
    assert DropDead().run(graph, Context()).changed == 0
