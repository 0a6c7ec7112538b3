"""Opset upgrades keep numbers, names, exact weights and everything around them."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from harness import assert_close, interface, model, run_reference
from onnx import helper, numpy_helper

from qgraph import onnx_io
from qgraph.context import Context
from qgraph.graph import Graph
from qgraph.passes.normalize import Normalize

# A chain of operators whose attributes became inputs between opset 9 and 21.
OLD = """<ir_version: 8, opset_import: ["" : {opset}]>
g (float[1, 4, 6] x, bool c) => (float[1, 4, 3] y, float[1, 2, 6] z) <float[6] w = {{1, 2, 3, 4, 5, 6}}> {{
  wide = Unsqueeze <axes = [0]> (x)
  back = Squeeze <axes = [0]> (wide)
  moved = Add (back, w)
  left, right = Split <axis = 1, split = [2, 2]> (moved)
  z = Clip {clip}
  total = ReduceSum <axes = [2], keepdims = 1> (moved)
  soft = Softmax <axis = 2> (moved)
  scaled = Mul (soft, total)
  picked = If (c) <
    then_branch = a () => (float[1, 4, 6] pa) {{ up = Unsqueeze <axes = [0]> (scaled)
                                                pa = Squeeze <axes = [0]> (up) }},
    else_branch = b () => (float[1, 4, 6] pb) {{ pb = Dropout {drop} (scaled) }}
  >
  y = Slice {cut}
}}"""


def old(opset: int) -> onnx.ModelProto:
    new_clip, new_slice, new_drop = opset >= 11, opset >= 10, opset >= 12
    text = OLD.format(
        opset=opset,
        clip="(left, low, high)" if new_clip else "<min = -1.0, max = 3.0> (left)",
        cut="(picked, s, e, a)" if new_slice else "<starts = [1], ends = [4], axes = [2]> (picked)",
        drop="" if new_drop else "<ratio = 0.5>",
    )
    proto = onnx.parser.parse_model(text)
    extra = {"low": np.array(-1, np.float32), "high": np.array(3, np.float32)} if new_clip else {}
    if new_slice:
        extra |= {"s": np.array([1]), "e": np.array([4]), "a": np.array([2])}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in extra.items())
    onnx.checker.check_model(proto, full_check=True)
    return proto


@pytest.mark.parametrize("opset", [9, 10, 11, 12])
def test_numbers_and_interface_stay(opset: int) -> None:
    proto = old(opset)
    graph = onnx_io.load(proto)
    assert onnx_io.upgrade_opset(graph, 21) is None
    out = onnx_io.to_proto(graph)
    onnx.checker.check_model(out, full_check=True)
    assert graph.opset == 21 and interface(out) == interface(proto)
    rng = np.random.default_rng(opset)
    for condition in (True, False):
        feeds = {
            "x": rng.standard_normal((1, 4, 6)).astype(np.float32),
            "c": np.array(condition),
        }
        assert_close(run_reference(proto, feeds), run_reference(out, feeds))


@pytest.mark.parametrize("opset", range(13, 21))
def test_later_opsets(opset: int) -> None:
    proto = (
        model(
            """g (float[2, 6] x) => (float[2, 1] y) {
          axes = Constant <value_ints = [1]> ()
          s = ReduceSum (x, axes)
          m = ReduceMean <axes = [1]> (x)
          h = Cast <to = 10> (m)
          f = Cast <to = 1> (h)
          e = Equal (s, f)
          y = Where (e, s, f)
        }""",
            opset=opset,
            ir_version=8,
        )
        if opset < 18
        else model(
            "g (float[2, 6] x) => (float[2, 6] y) { t = Relu (x)  y = Reshape <allowzero = 0> (t, s) }",
            {"s": np.array([0, -1])},
            opset=opset,
            ir_version=8,
        )
    )
    graph = onnx_io.load(proto)
    assert onnx_io.upgrade_opset(graph, 21) is None
    out = onnx_io.to_proto(graph)
    feeds = {"x": np.random.default_rng(opset).standard_normal((2, 6)).astype(np.float32)}
    assert_close(run_reference(proto, feeds), run_reference(out, feeds))
    # What the converter had nothing to say about is as it was.
    assert [n.op_type for n in out.graph.node] == [n.op_type for n in proto.graph.node] or (
        opset < 18
    )


def test_nothing_to_do_for_a_new_opset() -> None:
    graph = onnx_io.load(model("g (float[2] x) => (float[2] y) { y = Relu (x) }", opset=22))
    before = onnx_io.to_proto(graph)
    assert onnx_io.upgrade_opset(graph, 21) is None
    assert onnx_io.to_proto(graph) == before


def rich() -> onnx.ModelProto:
    """Opset 11, with everything that the converter drops on its way."""
    x = helper.make_tensor_value_info("x", 1, ["N", 4])
    x.doc_string, x.type.denotation = "input", "IMAGE"
    x.metadata_props.add(key="on", value="input")
    outer = [
        helper.make_node("Unsqueeze", ["x"], ["u"], axes=[0], name="up", doc_string="node"),
        helper.make_node("Squeeze", ["u"], ["s"], axes=[0], name="down"),
        helper.make_node("Mystery", ["s", "i4", "f8", ""], ["m"], domain="acme", name="custom"),
        helper.make_node("Add", ["m", "big"], ["a"], name="plain"),
    ]
    outer[0].metadata_props.add(key="on", value="changed node")
    outer[3].metadata_props.add(key="on", value="kept node")
    attr = helper.make_attribute("kind", helper.make_tensor_type_proto(1, [2]))
    outer[2].attribute.append(attr)
    then = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["t"], name="inner")],
        "then",
        [],
        [helper.make_tensor_value_info("t", 1, ["N", 4])],
        [numpy_helper.from_array(np.array([1.5, np.nan], ml_dtypes.bfloat16), "bf")],
    )
    then.doc_string = "body"
    other = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["a"], ["e0"], axes=[0]),
            helper.make_node("Squeeze", ["e0"], ["e"], axes=[0]),
        ],
        "else",
        [],
        [helper.make_tensor_value_info("e", 1, ["N", 4])],
    )
    outer.append(
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other, name="choice")
    )
    tensors = [
        numpy_helper.from_array(np.array([-8, 7, 3], ml_dtypes.int4), "i4"),
        numpy_helper.from_array(np.array([448, -0.0], ml_dtypes.float8_e4m3fn), "f8"),
        numpy_helper.from_array(np.arange(400, dtype=np.float32).reshape(100, 4), "big"),
        helper.make_tensor("st", onnx.TensorProto.STRING, [2], [b"a", "é".encode()]),
    ]
    for tensor in tensors:
        tensor.doc_string = f"about {tensor.name}"
    graph = helper.make_graph(
        outer,
        "g",
        [x, helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("y", 1, ["N", 4])],
        tensors,
    )
    graph.doc_string = "graph"
    graph.metadata_props.add(key="on", value="graph")
    noted = graph.quantization_annotation.add(tensor_name="s")
    noted.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="f8")
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 11), helper.make_opsetid("acme", 3)],
        ir_version=8,
        producer_name="p",
        doc_string="model",
    )
    proto.metadata_props.add(key="on", value="model")
    return proto


def test_what_the_converter_drops_is_kept() -> None:
    proto = rich()
    graph = onnx_io.load(proto)
    assert onnx_io.upgrade_opset(graph, 21) is None
    out = onnx_io.to_proto(graph)
    assert list(out.graph.initializer) == list(proto.graph.initializer)
    assert interface(out) == interface(proto)
    assert out.graph.quantization_annotation == proto.graph.quantization_annotation
    for field in ("metadata_props", "doc_string", "producer_name"):
        assert getattr(out, field) == getattr(proto, field)
    assert out.graph.doc_string == "graph" and out.graph.metadata_props[0].value == "graph"
    nodes = {node.name: node for node in out.graph.node}
    assert nodes["custom"] == proto.graph.node[2]
    assert nodes["plain"] == proto.graph.node[3]
    assert (
        nodes["up"].doc_string == "node" and nodes["up"].metadata_props[0].value == "changed node"
    )
    assert len(nodes["up"].input) == 2 and not nodes["up"].attribute
    bodies = {attr.name: attr.g for attr in nodes["choice"].attribute}
    then, other = bodies["then_branch"], bodies["else_branch"]
    (before,) = [a.g for a in proto.graph.node[4].attribute if a.name == "then_branch"]
    assert then.initializer == before.initializer and len(then.initializer) == 1
    assert then.doc_string == "body" and then.node[0].name == "inner"
    assert [n.op_type for n in other.node if n.op_type != "Constant"] == ["Unsqueeze", "Squeeze"]
    onnx.checker.check_model(out)


def test_sparse_weights_survive() -> None:
    values = helper.make_tensor("s", 1, [2], [1.0, 2.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("", 7, [2], [0, 3]), [4])
    proto = model(
        "g (float[4] x) => (float[4] y) { t = Relu (x)  y = Neg (t) }", opset=13, ir_version=8
    )
    proto.graph.node[1].op_type = "Add"
    proto.graph.node[1].input.append("s")
    proto.graph.sparse_initializer.append(sparse)
    graph = onnx_io.load(proto)
    assert onnx_io.upgrade_opset(graph, 21) is None
    out = onnx_io.to_proto(graph)
    assert list(out.graph.sparse_initializer) == [sparse]
    np.testing.assert_array_equal(
        run_reference(out, {"x": np.ones(4, np.float32)})["y"], [2, 1, 1, 3]
    )


@pytest.mark.parametrize("pairs", range(1, 12))
def test_generated_names_in_bodies_do_not_meet_outer_ones(pairs: int) -> None:
    """The converter numbers its values in every graph anew, whatever the graph around it has."""

    def there_and_back(source: str, count: int, prefix: str) -> list[onnx.NodeProto]:
        nodes = []
        for index in range(count):
            up, down = f"{prefix}up{index}", f"{prefix}{index}"
            nodes.append(helper.make_node("Unsqueeze", [source], [up], axes=[0]))
            nodes.append(helper.make_node("Squeeze", [up], [down], axes=[0]))
            source = down
        return nodes

    bodies = {
        name: helper.make_graph(
            there_and_back(f"o{pairs - 1}", 2, name),
            name,
            [],
            [helper.make_tensor_value_info(f"{name}1", 1, [4])],
        )
        for name in ("then", "other")
    }
    choice = helper.make_node(
        "If", ["c"], ["i"], then_branch=bodies["then"], else_branch=bodies["other"]
    )
    graph = helper.make_graph(
        [*there_and_back("x", pairs, "o"), choice, helper.make_node("Neg", ["i"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [4]), helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("y", 1, [4])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    loaded = onnx_io.load(proto)
    Normalize().run(loaded, Context())
    assert loaded.opset == 21
    out = onnx_io.to_proto(loaded)
    onnx.checker.check_model(out, full_check=True)
    for condition in (True, False):
        feeds = {"x": np.arange(4, dtype=np.float32), "c": np.array(condition)}
        np.testing.assert_array_equal(run_reference(out, feeds)["y"], -feeds["x"])


def test_a_model_that_the_converter_made_before() -> None:
    """It has values called as the converter calls its own, and the converter does not look."""
    made = [helper.make_node("Neg", ["x"], [f"_v_{index}"]) for index in range(40)]
    nodes = [
        *made,
        helper.make_node("Sum", [node.output[0] for node in made], ["s"]),
        helper.make_node("Unsqueeze", ["s"], ["u"], axes=[0]),
        helper.make_node("Squeeze", ["u"], ["y"], axes=[0]),
    ]
    infos = [helper.make_tensor_value_info(name, 1, [4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    loaded = onnx_io.load(proto)
    Normalize().run(loaded, Context())
    assert loaded.opset == 21
    feeds = {"x": np.arange(4, dtype=np.float32)}
    got = run_reference(onnx_io.to_proto(loaded), feeds)["y"]
    np.testing.assert_array_equal(got, -40 * feeds["x"])


def check_kept(graph: Graph, reason: str) -> None:
    before = onnx_io.to_proto(graph).SerializeToString(deterministic=True)
    problem = onnx_io.upgrade_opset(graph, 21)
    assert problem is not None and reason in problem and "\n" not in problem
    assert onnx_io.to_proto(graph).SerializeToString(deterministic=True) == before


def failing() -> onnx.ModelProto:
    """A BatchNormalization that also returns saved statistics has no successor in opset 14."""
    infos = [helper.make_tensor_value_info(name, 1, [3]) for name in "sbmv"]
    x, y = (helper.make_tensor_value_info(name, 1, [1, 3, 2]) for name in "xy")
    node = helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y", "m1", "v1", "m2", "v2"])
    big = numpy_helper.from_array(np.ones((20, 20), np.float32), "unread")
    graph = helper.make_graph([node], "g", [x, *infos], [y], [big])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4)


def test_a_failing_upgrade_keeps_the_model() -> None:
    check_kept(onnx_io.load(failing()), "version converter failed")


def test_local_functions_keep_their_opset() -> None:
    function = helper.make_function(
        "acme",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    graph = helper.make_graph(
        [helper.make_node("Twice", ["x"], ["y"], domain="acme")],
        "g",
        [helper.make_tensor_value_info("x", 1, [2])],
        [helper.make_tensor_value_info("y", 1, [2])],
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)],
        ir_version=8,
        functions=[function],
    )
    check_kept(onnx_io.load(proto), "local functions")


def test_shapes_are_inferred_in_subgraphs_too_and_outputs_stay() -> None:
    proto = model(
        """g (float[N, 3] x, bool c) => (y) {
          t = Transpose <perm = [1, 0]> (x)
          y = If (c) <then_branch = a () => (float[M, K] ya) { u = Neg (t)  ya = Abs (u) },
                      else_branch = b () => (float[M, K] yb) { yb = Relu (t) }>
        }""".replace("(y)", "(float[M, K] y)")
    )
    graph = onnx_io.load(proto)
    assert onnx_io.infer_shapes(graph) is None
    values = {out.name: graph.shape(out) for node in graph.walk() for out in node.outputs}
    assert values["t"] == values["u"] == (3, "N")
    assert values["y"] == ("M", "K")


def test_inference_that_fails_is_no_error() -> None:
    graph = onnx_io.load(model("g (float[2] x) => (float[2] y) { y = Relu (x) }"))
    graph.main.inputs[0].name = None  # nothing can be serialized now
    assert "shape inference failed" in (onnx_io.infer_shapes(graph) or "")


def test_inferring_again_forgets_symbols_made_up_before() -> None:
    proto = model(
        """g (float[N, 4] x, int64[1] n) => (float[A, B] y) {
          r = Reshape (x, shape)
          t = Relu (r)
          y = Identity (t)
        }""",
        {"shape": np.array([-1, 2])},
    )
    graph = onnx_io.load(proto)
    values = {out.name: out for node in graph.walk() for out in node.outputs}
    (reshape,) = graph.nodes("Reshape")
    graph.set_input(reshape, 1, next(v for v in graph.inputs if v.name == "n"))
    assert onnx_io.infer_shapes(graph) is None
    assert isinstance((graph.shape(values["t"]) or ("",))[0], str)
    graph.set_input(reshape, 1, graph.constant("fixed", np.array([8])))
    assert onnx_io.infer_shapes(graph) is None
    assert graph.shape(values["t"]) == (8,)
