"""Normal form: names, constants, opset, IR version, shapes; the numbers and interface stay."""

import numpy as np
import onnx
import pytest
from harness import apply, check_fires, check_stays, model, ops, run_reference
from onnx import helper, numpy_helper

from qgraph import onnx_io
from qgraph.errors import UsageError
from qgraph.passes.normalize import Normalize


def named(text: str) -> onnx.ModelProto:
    """A model whose nodes have names, so that only what the test is about changes."""
    proto = model(text)
    for index, node in enumerate(proto.graph.node):
        node.name = f"n{index}"
    return proto


def test_a_normal_model_stays() -> None:
    check_stays(Normalize(), named("g (float[2] x) => (float[2] y) { t = Relu (x)  y = Neg (t) }"))


def test_node_names_become_unique() -> None:
    proto = model(
        """g (float[2] x, bool c) => (float[2] y) {
          t = Relu (x)
          u = Relu (t)
          y = If (c) <then_branch = a () => (float[2] ya) { ya = Neg (u) },
                      else_branch = b () => (float[2] yb) { yb = Relu (u) }>
        }"""
    )
    proto.graph.node[0].name = "same"
    proto.graph.node[1].name = "same"
    # onnxruntime takes no model with two nodes of one name, so there are no numbers to compare.
    out, (report,), graph = apply(Normalize(), proto)
    assert report.details == ["4 nodes got unique names"]
    names = [node.name for node in graph.walk()]
    assert len(set(names)) == len(names) == 5 and all(names)
    assert out.graph.node[0].name == "same"


def test_values_of_subgraphs_get_names_of_their_own() -> None:
    proto = model(
        """g (float[2] x, bool c) => (float[2] y) {
          y = If (c) <
            then_branch = a () => (float[2] r) <float[2] k = {1, 2}> { t = Add (x, k)  r = Neg (t) },
            else_branch = b () => (float[2] r) <float[2] k = {3, 4}> { t = Sub (x, k)  r = Abs (t) }>
        }"""
    )
    check_fires(Normalize(), proto)
    _, _, graph = apply(Normalize(), proto)
    names = [
        value.name
        for each in graph.graphs()
        for value in [*each.initializers.values(), *(o for node in each for o in node.outputs)]
    ]
    assert len(set(names)) == len(names) == 7


def test_the_long_domain_name_becomes_the_short_one() -> None:
    proto = named("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    proto.opset_import[0].domain = "ai.onnx"
    proto.graph.node[0].domain = "ai.onnx"
    out, (report,), _ = apply(Normalize(), proto)
    assert report.changed == 1 and not out.graph.node[0].domain
    assert [(o.domain, o.version) for o in out.opset_import] == [("", 21)]


CONSTANTS = """g (float[2] x) => (float[2] y, int64[3] n, string s) {
  a = Constant <value = float[2] {1, 2}> ()
  b = Constant <value_float = 2.0> ()
  c = Constant <value_floats = [3.0, 4.0]> ()
  i = Constant <value_int = 7> ()
  is = Constant <value_ints = [7, 8, 9]> ()
  t = Constant <value_string = "é"> ()
  ab = Add (a, b)
  abc = Add (ab, c)
  y = Mul (x, abc)
  n = Add (i, is)
  s = Identity (t)
}"""


def test_constants_become_initializers() -> None:
    out = check_fires(Normalize(), model(CONSTANTS))
    assert ops(out) == ["Add", "Add", "Mul", "Add", "Identity"]
    got = {t.name: numpy_helper.to_array(t) for t in out.graph.initializer}
    assert got["b"].dtype == np.float32 and got["b"].shape == ()
    assert got["is"].tolist() == [7, 8, 9] and got["i"].dtype == np.int64
    assert got["t"].tolist() == "é"


def test_constants_of_subgraphs_stay_in_them() -> None:
    proto = model(
        """g (float[2] x, bool c) => (float[2] y) {
          y = If (c) <
            then_branch = a () => (float[2] ya) { k = Constant <value_float = 2.0> ()
                                                  ya = Mul (x, k) },
            else_branch = b () => (float[2] yb) { yb = Constant <value_floats = [1.0, 2.0]> () }>
        }"""
    )
    out = check_fires(Normalize(), proto)
    bodies = {attr.name: attr.g for attr in out.graph.node[0].attribute}
    assert [t.name for t in bodies["then_branch"].initializer] == ["k"]
    # What a body returns must be made by a node of it.
    assert bodies["else_branch"].node[0].op_type == "Constant"


def test_a_constant_that_is_a_graph_output_stays_a_node() -> None:
    proto = named("g (float[2] x) => (float[2] k) { k = Constant <value_floats = [1.0, 2.0]> () }")
    check_stays(Normalize(), proto)


def test_metadata_of_lifted_constants_is_kept() -> None:
    proto = named(
        "g (float[2] x) => (float[2] y) { k = Constant <value_float = 1.0> ()  y = Add (x, k) }"
    )
    info = helper.make_tensor_value_info("k", 1, [])
    info.doc_string = "doc"
    info.metadata_props.add(key="a", value="b")
    proto.graph.value_info.append(info)
    _, _, graph = apply(Normalize(), proto)
    (value,) = graph.initializers
    assert value.doc_string == "doc" and value.metadata_props == {"a": "b"}


def old(ir_version: int) -> onnx.ModelProto:
    proto = named(
        "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Add (x, w) }"
    )
    proto.ir_version = ir_version
    proto.opset_import[0].version = 9
    return proto


def test_old_models_list_weights_as_inputs_without_meaning_it() -> None:
    out, (report,), graph = apply(Normalize(), old(3))
    assert [v.name for v in out.graph.input] == ["x"] and not report.warnings
    assert out.ir_version == 10 and graph.opset == 21
    assert graph.is_constant(graph.initializers[0])


def test_newer_models_mean_it_and_are_told() -> None:
    out, (report,), graph = apply(Normalize(), old(4))
    assert [v.name for v in out.graph.input] == ["x", "w"]
    (warning,) = report.warnings
    assert "1 weights are also graph inputs" in warning and "'w'" in warning
    assert "normalize.freeze_inputs=true" in warning
    assert not graph.is_constant(graph.initializers[0])


def test_they_can_be_frozen() -> None:
    proto = old(4)
    out, (report,), _ = apply(Normalize(freeze_inputs=True), proto)
    assert [v.name for v in out.graph.input] == ["x"] and not report.warnings
    feeds = {"x": np.array([3, 4], np.float32)}
    np.testing.assert_array_equal(run_reference(out, feeds)["y"], [4, 6])


@pytest.mark.parametrize(("opset", "ir_version"), [(13, 7), (17, 8), (21, 10), (22, 10), (23, 11)])
def test_the_ir_version_follows_the_opset(opset: int, ir_version: int) -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Relu (x) }", opset=9, ir_version=4)
    out, _, _ = apply(Normalize(opset=opset), proto)
    assert out.ir_version == ir_version and out.opset_import[0].version == opset


def test_a_newer_ir_version_stays() -> None:
    proto = named("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    proto.ir_version = 11
    out, _, _ = apply(Normalize(), proto)
    assert out.ir_version == 11


def test_opset_upgrade_keeps_numbers() -> None:
    proto = model(
        """g (float[2, 3] x) => (float[2] y, float[2, 3] z) {
          u = Unsqueeze <axes = [0]> (x)
          s = Squeeze <axes = [0]> (u)
          y = ReduceSum <axes = [1], keepdims = 0> (s)
          z = Clip <min = -0.5> (s)
        }""",
        opset=9,
        ir_version=4,
    )
    out = check_fires(Normalize(), proto)
    assert "Constant" not in ops(out)


def test_a_failing_upgrade_is_a_warning() -> None:
    infos = [helper.make_tensor_value_info(name, 1, [3]) for name in "sbmv"]
    x, y = (helper.make_tensor_value_info(name, 1, [1, 3, 2]) for name in "xy")
    node = helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y", "m1", "v1", "m2", "v2"])
    graph = helper.make_graph([node], "g", [x, *infos], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4)
    _, (report,), loaded = apply(Normalize(), proto)
    assert loaded.opset == 9
    assert any("stays at opset 9: onnx's version converter failed" in w for w in report.warnings)
    assert report.refused[0].where == "opset"


def test_models_without_standard_operators_have_no_opset_to_upgrade() -> None:
    text = """<ir_version: 10, opset_import: ["acme" : 1]>
    g (float[2] x) => (float[2] y) { y = acme.Foo (x) }"""
    proto = onnx.parser.parse_model(text)
    _, (report,), graph = apply(Normalize(), proto)
    assert not report.warnings and graph.model.opset_imports == {"acme": 1}


def test_shapes_are_inferred() -> None:
    proto = named("g (float[N, 3] x) => (float[3, N] y) { t = Relu (x)  y = Transpose (t) }")
    for version in (21, 17):
        proto.opset_import[0].version = version
        _, _, graph = apply(Normalize(), proto)
        (relu,) = graph.nodes("Relu")
        assert graph.shape(relu.outputs[0]) == ("N", 3)


@pytest.mark.parametrize("opset", [8, 0, 999])
def test_impossible_opsets_are_refused(opset: int) -> None:
    with pytest.raises(UsageError, match="normalize.opset must be 9 to"):
        Normalize(opset=opset)
    with pytest.raises(UsageError, match="normalize"):
        Normalize.with_options({"opset": opset})


def test_sparse_constants_stay() -> None:
    values = helper.make_tensor("", 1, [2], [1.0, 2.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("", 7, [2], [0, 3]), [4])
    proto = named("g (float[4] x) => (float[4] y) { t = Relu (x)  y = Neg (t) }")
    proto.graph.node[1].op_type = "Add"
    proto.graph.node[1].input.append("s")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["s"], sparse_value=sparse))
    graph = onnx_io.load(proto)
    assert Normalize().run(graph, None).changed == 0  # type: ignore[arg-type]
    assert list(graph.sparse) == ["s"]
    out = onnx_io.to_proto(graph)
    got = run_reference(out, {"x": np.zeros(4, np.float32)})
    np.testing.assert_array_equal(got["y"], [1, 0, 0, 2])
