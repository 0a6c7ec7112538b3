"""The graph that passes rewrite: names, constants, replacing and removing."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from harness import interface, model, ops, random_feeds, run_reference

from qgraph import onnx_io
from qgraph.graph import Graph


def load(text: str, **kwargs: object) -> tuple[onnx.ModelProto, Graph]:
    proto = model(text, **kwargs)
    return proto, onnx_io.load(proto)


def find(graph: Graph, name: str) -> ir.Value:
    for each in graph.graphs():
        values = [*each.inputs, *each.initializers.values()]
        values += [out for node in each for out in node.outputs]
        for value in values:
            if value.name == name:
                return value
    raise KeyError(name)


def checked(graph: Graph, proto: onnx.ModelProto) -> onnx.ModelProto:
    """The message, valid and with the interface of the original."""
    out = onnx_io.to_proto(graph)
    onnx.checker.check_model(out, full_check=True)
    assert interface(out) == interface(proto)
    return out


IF = """g (float[2] x, bool c) => (float[2] y, float[2] z) <float[2] w = {1, 2}> {
  t = Relu (x)
  u = Neg (x)
  y = If (c) <
    then_branch = a () => (float[2] ya) { ya = Add (t, w) },
    else_branch = b () => (float[2] yb) {
      inner = Sub (t, u)
      yb = If (c) <then_branch = d () => (float[2] yd) { yd = Mul (inner, t) },
                   else_branch = e () => (float[2] ye) { ye = Neg (u) }>
    }
  >
  z = Identity (t)
}"""


# -- reading -----------------------------------------------------------------------------------


def test_constants_are_what_no_caller_can_change() -> None:
    _, graph = load(
        """g (float[2] x, float[2] d) => (float[2] y, float[2] k)
        <float[2] d = {1, 2}, float[2] w = {3, 4}> {
          c = Constant <value_float = 2.0> ()
          k = Constant <value = float[2] {7, 8}> ()
          s = Sum (x, d, w, c)
          y = Add (s, k)
        }"""
    )
    for name, want in (("w", [3, 4]), ("c", 2), ("k", [7, 8])):
        np.testing.assert_array_equal(graph.array(find(graph, name)), want)
        assert graph.is_constant(find(graph, name))
    for name in ("d", "x", "s"):
        assert graph.array(find(graph, name)) is None
    assert graph.array(None) is None
    assert graph.scalar(find(graph, "c")) == 2 and graph.scalar(find(graph, "w")) is None
    assert [v.name for v in graph.inputs] == ["x"]


@pytest.mark.parametrize(
    ("attribute", "want"),
    [
        ("value_int = 3", np.int64(3)),
        ("value_ints = [3, 4]", np.array([3, 4])),
        ("value_floats = [0.5]", np.array([0.5], np.float32)),
        ('value_string = "é"', np.array("é".encode(), object)),
        ('value_strings = ["é", "b"]', np.array(["é".encode(), b"b"], object)),
    ],
)
def test_every_form_of_constant(attribute: str, want: np.ndarray) -> None:
    kind = {"i": "int64", "f": "float", "s": "string"}[attribute.split("_")[1][0]]
    shape = "" if attribute.split(" ")[0][-1] != "s" else f"[{len(want)}]"
    _, graph = load(f"g () => ({kind}{shape} y) {{ y = Constant <{attribute}> () }}")
    got = graph.array(find(graph, "y"))
    assert got is not None and got.shape == want.shape and got.tolist() == want.tolist()
    assert kind == "string" or got.dtype == want.dtype


def test_a_constant_of_another_domain_is_no_constant() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
    g (float[2] x) => (float[2] y) { c = acme.Constant <value_float = 1.0> ()  y = Add (x, c) }"""
    _, graph = load(text)
    assert not graph.is_constant(find(graph, "c"))
    assert not graph.is_standard(find(graph, "c").producer(), "Constant")


def test_reading_subgraphs() -> None:
    _, graph = load(IF)
    assert len(list(graph.graphs())) == 5
    assert [n.op_type for n in graph.walk()] == [
        "Relu",
        "Neg",
        "If",
        "Add",
        "Sub",
        "If",
        "Mul",
        "Neg",
        "Identity",
    ]
    assert sorted(n.op_type for n in graph.readers(find(graph, "t"))) == [
        "Add",
        "Identity",
        "Mul",
        "Sub",
    ]
    assert graph.only_reader(find(graph, "inner")).op_type == "Mul"
    assert graph.only_reader(find(graph, "t")) is None
    view = graph.view()
    assert {(a.op_type, b.op_type) for a, b in view.edges} == {
        ("Relu", "If"),
        ("Neg", "If"),
        ("Relu", "Identity"),
    }


def test_iterating_while_removing() -> None:
    _, graph = load("g (float[2] x) => (float[2] y) { y = Relu (x)  a = Neg (x)  b = Abs (x) }")
    seen = []
    for node in graph.nodes():
        seen.append(node.op_type)
        graph.remove_unread([node])
    assert seen == ["Relu", "Neg", "Abs"] and [n.op_type for n in graph.nodes()] == ["Relu"]


# -- names and constants -----------------------------------------------------------------------


def test_fresh_names_are_new_everywhere() -> None:
    _, graph = load(IF)
    for taken in ("x", "y", "w", "inner", "ye"):
        assert graph.fresh(taken) != taken
    names = [graph.fresh("n") for _ in range(5)] + [graph.fresh("n_1")]
    assert len(set(names)) == 6 and names[0] == "n"


@pytest.mark.parametrize(
    "dtype",
    [np.float32, np.int64, np.bool_, ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.float8_e4m3fn],
)
def test_new_constants_keep_their_type(dtype: type) -> None:
    _, graph = load("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    array = np.array([[1, 0], [1, 1]], dtype)
    value = graph.constant("y", array)
    assert value.name != "y" and graph.shape(value) == (2, 2)
    got = graph.array(value)
    assert got is not None and got.dtype == array.dtype and got.tobytes() == array.tobytes()
    (tensor,) = onnx_io.to_proto(graph).graph.initializer
    assert onnx.numpy_helper.to_array(tensor).tobytes() == array.tobytes()


def test_inserted_nodes_do_not_share_their_type() -> None:
    _, graph = load("g (float[2] x) => (float[2] y) { t = Relu (x)  y = Neg (t) }")
    relu = find(graph, "t").producer()
    node = graph.insert("Abs", [find(graph, "t")], after=relu, like=find(graph, "t"))
    node.outputs[0].dtype = ir.DataType.FLOAT16
    assert find(graph, "t").dtype != ir.DataType.FLOAT16
    with pytest.raises(ValueError, match="exactly one"):
        graph.insert("Abs", [find(graph, "t")], after=relu, before=relu)


# -- replacing ---------------------------------------------------------------------------------


def test_replace_inside() -> None:
    proto, graph = load("g (float[2] x) => (float[2] y) { t = Relu (x)  y = Neg (t) }")
    graph.replace(find(graph, "t"), find(graph, "x"))
    graph.remove(find(graph, "t").producer())
    assert ops(checked(graph, proto)) == ["Neg"]


def test_replace_a_graph_output_by_a_node() -> None:
    proto, graph = load("g (float[2] x) => (float[2] y) { t = Relu (x)  y = Abs (t) }")
    old = find(graph, "y")
    old.doc_string, old.metadata_props["k"] = "doc", "v"
    node = graph.insert("Abs", [find(graph, "x")], before=old.producer())
    graph.replace(old, node.outputs[0])
    graph.remove_unread([find(graph, "t").producer(), old.producer()])
    assert graph.outputs == [node.outputs[0]] and node.outputs[0].name == "y"
    assert node.outputs[0].doc_string == "doc" and node.outputs[0].metadata_props == {"k": "v"}
    out = onnx_io.to_proto(graph)
    onnx.checker.check_model(out, full_check=True)
    assert ops(out) == ["Abs"] and out.graph.output[0].type == proto.graph.output[0].type


@pytest.mark.parametrize("new", ["x", "w", "z", "c"])
def test_replace_a_graph_output_by_what_can_not_take_its_name(new: str) -> None:
    proto, graph = load(
        """g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {1, 2}> {
          c = Constant <value_floats = [3.0, 4.0]> ()
          z = Relu (x)
          y = Neg (x)
          unread = Add (y, c)
        }"""
    )
    old = find(graph, "y")
    graph.replace(old, find(graph, new))
    graph.remove_unread([old.producer()])
    out = checked(graph, proto)
    assert ("Identity" in ops(out)) is (new != "c")  # a node's own result takes the name
    assert "Neg" not in ops(out)
    feeds = {"x": np.array([-1, 5], np.float32)}
    got = run_reference(out, feeds)
    want = {"x": feeds["x"], "w": [1, 2], "z": [0, 5], "c": [3, 4]}[new]
    np.testing.assert_array_equal(got["y"], want)
    np.testing.assert_array_equal(got["z"], [0, 5])


def test_replace_an_input_that_is_also_an_output() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Neg (x) }")
    proto.graph.output.append(proto.graph.input[0])
    graph = onnx_io.load(proto)
    x = find(graph, "x")
    node = graph.insert(
        "Constant",
        [],
        before=find(graph, "y").producer(),
        attributes={"value_floats": [1.0, 2.0]},
        like=x,
    )
    graph.replace(x, node.outputs[0])
    got = run_reference(checked(graph, proto), {"x": np.array([8, 9], np.float32)})
    np.testing.assert_array_equal(got["x"], [8, 9])
    np.testing.assert_array_equal(got["y"], [-1, -2])


def test_replace_a_constant_that_is_a_graph_output() -> None:
    proto = model("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add (x, w) }")
    proto.graph.output.append(onnx.helper.make_tensor_value_info("w", 1, [2]))
    graph = onnx_io.load(proto)
    new = graph.constant("v", np.array([5, 6], np.float32))
    graph.replace(find(graph, "w"), new)
    graph.drop_unread_initializers()
    got = run_reference(checked(graph, proto), {"x": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(got["w"], [5, 6])
    np.testing.assert_array_equal(got["y"], [5, 6])


def test_replace_one_value_that_is_several_outputs() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Neg (x) }")
    proto.graph.output.append(proto.graph.output[0])
    graph = onnx_io.load(proto)
    node = graph.insert("Abs", [find(graph, "x")], before=find(graph, "y").producer())
    graph.replace(find(graph, "y"), node.outputs[0])
    graph.remove_unread(list(graph.nodes("Neg")))
    out = onnx_io.to_proto(graph)
    onnx.checker.check_model(out)
    assert [o.name for o in out.graph.output] == ["y", "y"] and ops(out) == ["Abs"]


def test_two_outputs_that_become_one_value() -> None:
    proto, graph = load("g (float[2] x) => (float[2] y, float[2] z) { y = Neg (x)  z = Neg (x) }")
    graph.replace(find(graph, "z"), find(graph, "y"))
    graph.remove_unread(list(graph.nodes("Neg")))
    out = checked(graph, proto)
    assert ops(out) == ["Neg", "Identity"]


def test_replace_what_subgraphs_read_and_return() -> None:
    proto, graph = load(IF)
    graph.replace(find(graph, "t"), find(graph, "x"))  # read at every level
    assert not find(graph, "t").uses()
    # A body's output, by a value of the outer graph: a node must carry it.
    old = find(graph, "ye")
    graph.replace(old, find(graph, "w"))
    graph.remove_unread([old.producer(), find(graph, "t").producer()])
    out = checked(graph, proto)
    x = np.array([-3, 4], np.float32)
    for condition, want in ((True, x + [1, 2]), (False, [1, 2])):
        got = run_reference(out, {"x": x, "c": np.array(condition)})
        np.testing.assert_array_equal(got["y"], want)
        np.testing.assert_array_equal(got["z"], x)


def test_replace_by_itself_changes_nothing() -> None:
    proto, graph = load("g (float[2] x) => (float[2] y) { t = Relu (x)  y = Neg (t) }")
    graph.replace(find(graph, "t"), find(graph, "t"))
    graph.replace(find(graph, "y"), find(graph, "y"))
    assert onnx_io.to_proto(graph) == onnx_io.to_proto(onnx_io.load(proto))


# -- removing ----------------------------------------------------------------------------------


def test_what_is_read_can_not_be_removed() -> None:
    _, graph = load("g (float[2] x) => (float[2] y) { t = Relu (x)  y = Neg (t) }")
    for name in ("t", "y"):
        with pytest.raises(ValueError, match="output|used"):
            graph.remove(find(graph, name).producer())
    assert graph.remove_unread([find(graph, "t").producer(), find(graph, "y").producer()]) == 0


def test_removing_an_if_frees_what_its_bodies_read() -> None:
    _, graph = load(
        """g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
          t = Relu (x)
          u = If (c) <then_branch = a () => (float[2] ua) { ua = Add (t, w) },
                      else_branch = b () => (float[2] ub) { ub = Sub (t, w) }>
          y = Neg (x)
        }"""
    )
    assert graph.remove_unread(list(graph.nodes("Relu", "If"))) == 2
    assert graph.drop_unread_initializers() == 1
    assert [n.op_type for n in graph.walk()] == ["Neg"]


def test_unread_initializers_of_subgraphs_go_and_defaults_stay() -> None:
    _, graph = load(
        """g (float[2] x, float[2] d, bool c) => (float[2] y) <float[2] d = {1, 2}> {
          y = If (c) <
            then_branch = a () => (float[2] ya) <float[2] v = {1, 2}> { ya = Neg (x) },
            else_branch = b () => (float[2] yb) <float[2] k = {1, 2}> { yb = Add (x, k) }>
        }"""
    )
    assert graph.drop_unread_initializers() == 1
    assert [i.name for each in graph.graphs() for i in each.initializers.values()] == ["d", "k"]


def test_set_input_and_attribute() -> None:
    proto, graph = load("g (float[2] x) => (float[2] y) { y = Clip (x) }")
    (clip,) = graph.nodes()
    graph.set_input(clip, 2, graph.constant("high", np.array(1, np.float32)))
    out = checked(graph, proto)
    assert out.graph.node[0].input[1] == ""
    feeds = random_feeds(proto)
    want = np.minimum(feeds["x"], 1)
    np.testing.assert_array_equal(run_reference(out, feeds)["y"], want)
    graph.set_attribute(clip, "note", [1, 2])
    assert graph.attribute(clip, "note") == (1, 2)
    graph.set_attribute(clip, "note", None)
    assert graph.attribute(clip, "note", "none") == "none"
