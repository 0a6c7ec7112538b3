"""Loading and saving: types, texts, subgraphs, functions, sparse weights: nothing is lost."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from harness import model, random_feeds, run_reference
from onnx import TensorProto, helper, numpy_helper
from onnxfiles import FLOAT, build, info, linear, reason, round_trip

from qgraph import onnx_io

# -- what must survive -------------------------------------------------------------------------

EXOTIC = {
    "INT4": ([-8, 7, 3], ml_dtypes.int4),
    "UINT4": ([0, 15, 3], ml_dtypes.uint4),
    "FLOAT8E4M3FN": ([1.5, -448, 0.0], ml_dtypes.float8_e4m3fn),
    "FLOAT8E4M3FNUZ": ([1.5, -240, 0.0], ml_dtypes.float8_e4m3fnuz),
    "FLOAT8E5M2": ([1.5, np.inf, -0.0], ml_dtypes.float8_e5m2),
    "FLOAT8E5M2FNUZ": ([1.5, -2, 0.0], ml_dtypes.float8_e5m2fnuz),
    "BFLOAT16": ([1.5, -3e38, np.nan], ml_dtypes.bfloat16),
    "FLOAT16": ([1.5, 65504, -0.0], np.float16),
    "BOOL": ([True, False, True], np.bool_),
    "UINT64": ([0, 2**64 - 1, 3], np.uint64),
    "DOUBLE": ([1e-300, np.inf, np.nan], np.float64),
    "COMPLEX64": ([1 + 2j, 0, -1j], np.complex64),
}


@pytest.mark.parametrize("name", EXOTIC)
@pytest.mark.parametrize("packed", [True, False], ids=["raw", "fields"])
def test_types_are_exact(name: str, packed: bool, tmp_path: Path) -> None:
    values, dtype = EXOTIC[name]
    array = np.array(values, dtype)
    tensor = numpy_helper.from_array(array, "t")
    if not packed:
        tensor = helper.make_tensor("t", getattr(TensorProto, name), [3], array.tolist())
        array = numpy_helper.to_array(tensor)  # make_tensor saturates
    proto = build(
        [helper.make_node("Identity", ["t"], ["y"])],
        [],
        [info("y", tensor.data_type, [3])],
        [tensor],
    )
    graph = onnx_io.load(proto)
    got = graph.array(graph.main.initializers["t"])
    assert got is not None and got.dtype == array.dtype and got.tobytes() == array.tobytes()
    assert round_trip(proto, tmp_path).graph.initializer[0] == tensor


@pytest.mark.parametrize("name", EXOTIC)
def test_external_types_are_exact(name: str, tmp_path: Path) -> None:
    values, dtype = EXOTIC[name]
    array = np.resize(np.array(values, dtype), 3000)
    proto = build(
        [helper.make_node("Identity", ["t"], ["y"])],
        [],
        [info("y", getattr(TensorProto, name), [3000])],
        [numpy_helper.from_array(array, "t")],
    )
    written = onnx_io.save(onnx_io.load(proto), tmp_path / "m.onnx", external=True)
    sizes = {path.name: path.stat().st_size for path in written}
    bits = ir.DataType[name].bitwidth
    assert sizes["m.onnx.data"] == (3000 * bits + 7) // 8 and sizes["m.onnx"] < 400
    graph = onnx_io.load(tmp_path / "m.onnx")
    got = graph.array(graph.main.initializers["t"])
    assert got is not None and got.dtype == array.dtype and got.tobytes() == array.tobytes()


def test_strings_are_bytes_not_text(tmp_path: Path) -> None:
    tensor = helper.make_tensor("s", TensorProto.STRING, [3], [b"a", "é".encode(), b"\xff\x00"])
    node = helper.make_node("Identity", ["s"], ["y"])
    proto = build([node], [], [info("y", TensorProto.STRING, [3])], [tensor])
    assert round_trip(proto, tmp_path).graph.initializer[0].string_data == tensor.string_data


def sparse(name: str) -> onnx.SparseTensorProto:
    values = helper.make_tensor(name, FLOAT, [2], [1.0, 2.0])
    return helper.make_sparse_tensor(values, helper.make_tensor("", 7, [2], [0, 3]), [4])


def test_sparse_initializer_and_constant(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], sparse_value=sparse("")),
        helper.make_node("Add", ["x", "c"], ["t"]),
        helper.make_node("Add", ["t", "s"], ["y"]),
    ]
    proto = build(nodes, [info("x")], [info("y")])
    proto.graph.sparse_initializer.append(sparse("s"))
    out = onnx_io.to_proto(onnx_io.load(proto))
    assert {t.values.name for t in out.graph.sparse_initializer} == {"s", "c"}
    assert out.graph.sparse_initializer[0] == sparse("s")
    assert [v.name for v in out.graph.input] == ["x"]
    assert [n.op_type for n in out.graph.node] == ["Add", "Add"]
    feeds = {"x": np.ones(4, np.float32)}
    np.testing.assert_array_equal(run_reference(out, feeds)["y"], [3, 1, 1, 5])
    onnx_io.save(onnx_io.load(proto), tmp_path / "m.onnx", external=True)
    assert {t.values.name for t in onnx.load(tmp_path / "m.onnx").graph.sparse_initializer} == {
        "s",
        "c",
    }


def test_sparse_constants_in_subgraphs_are_hoisted() -> None:
    bodies = [
        helper.make_graph(nodes, name, [], [info(out)])
        for name, out, nodes in (
            ("then", "t", [helper.make_node("Constant", [], ["t"], sparse_value=sparse(""))]),
            ("else", "e", [helper.make_node("Neg", ["s"], ["e"])]),
        )
    ]
    bodies[1].sparse_initializer.append(sparse("s"))
    choice = helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    proto = build([choice], [info("c", TensorProto.BOOL, [])], [info("y")])
    out = onnx_io.to_proto(onnx_io.load(proto))
    assert len(out.graph.sparse_initializer) == 2
    for condition, want in ((True, [1, 0, 0, 2]), (False, [-1, 0, 0, -2])):
        np.testing.assert_array_equal(run_reference(out, {"c": np.array(condition)})["y"], want)


def test_metadata_docs_and_annotations_at_every_level(tmp_path: Path) -> None:
    proto = linear()
    proto.doc_string, proto.producer_name, proto.producer_version = "model doc", "p", "1"
    proto.domain, proto.model_version = "d", 7
    proto.graph.doc_string = "graph doc"
    proto.graph.node[0].doc_string = "node doc"
    proto.graph.input[0].doc_string = "input doc"
    proto.graph.output[0].doc_string = "output doc"
    proto.graph.initializer[0].doc_string = "tensor doc"
    proto.graph.input[0].type.denotation = "IMAGE"
    proto.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_CHANNEL"
    for holder in (
        proto,
        proto.graph,
        proto.graph.node[0],
        proto.graph.input[0],
        proto.graph.output[0],
        proto.graph.initializer[0],
    ):
        holder.metadata_props.add(key="k", value="é")
    annotation = proto.graph.quantization_annotation.add(tensor_name="x")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    out = round_trip(proto, tmp_path)
    assert not out.graph.value_info or out.graph.value_info[0].name == "w"
    del out.graph.value_info[:]
    assert str(out) == str(proto)


def test_functions_and_reference_attributes(tmp_path: Path) -> None:
    node = helper.make_node("LeakyRelu", ["a"], ["b"])
    ref = node.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    assert ref.ref_attr_name
    constant = helper.make_node("Constant", [], ["one"], value_float=1.0)
    total = helper.make_node("Add", ["b", "one"], ["c"])
    function = helper.make_function(
        "my",
        "Leaky",
        ["a"],
        ["c"],
        [node, constant, total],
        [helper.make_opsetid("", 21)],
        attributes=["slope"],
    )
    function.doc_string = "function doc"
    call = helper.make_node("Leaky", ["x"], ["y"], domain="my", slope=0.5)
    proto = build([call], [info("x")], [info("y")], domains=["my"], functions=[function])
    out = round_trip(proto, tmp_path)
    assert out.functions == proto.functions
    feeds = random_feeds(proto)
    np.testing.assert_array_equal(run_reference(out, feeds)["y"], run_reference(proto, feeds)["y"])


def test_subgraphs_that_read_the_outer_graph(tmp_path: Path) -> None:
    proto = model(
        """g (float[4] x, bool c, int64 n) => (float[4] y, float[4] z, float[K, 4] s)
        <float[4] w = {1, 2, 3, 4}> {
          t = Mul (x, w)
          y = If (c) <
            then_branch = a () => (float[4] ya) { ya = Add (t, w) },
            else_branch = b () => (float[4] yb) <float[4] v = {5, 6, 7, 8}> {
              yb = If (c) <then_branch = d () => (float[4] yd) { yd = Sub (t, v) },
                           else_branch = e () => (float[4] ye) { ye = Mul (t, v) }>
            }
          >
          z, s = Loop (n, c, t) <
            body = l (int64 i, bool go, float[4] acc) => (bool more, float[4] next, float[4] row) {
              more = Identity (go)  next = Add (acc, w)  row = Mul (next, t)
            }
          >
        }"""
    )
    graph = onnx_io.load(proto)
    (weight,) = [v for v in graph.initializers if v.name == "w"]
    assert [n.op_type for n in graph.readers(weight)] == ["Mul", "Add", "Add"]
    out = round_trip(proto, tmp_path)
    for condition in (True, False):
        feeds = {
            "x": np.arange(4, dtype=np.float32),
            "c": np.array(condition),
            "n": np.array(3),
        }
        want, got = run_reference(proto, feeds), run_reference(out, feeds)
        assert all(np.array_equal(want[name], got[name]) for name in want)


def test_optional_inputs_symbolic_dims_constants_and_defaults(tmp_path: Path) -> None:
    proto = model(
        """g (float[batch, 4, ?] x, float w) => (float[batch, 4, ?] y)
        <float w = {3}> {
          high = Constant <value_float = 2.0> ()
          c = Clip (x, , high)
          y = Mul (c, w)
        }"""
    )
    graph = onnx_io.load(proto)
    assert [v.name for v in graph.inputs] == ["x"]
    assert graph.shape(graph.inputs[0]) == ("batch", 4, None)
    out = round_trip(proto, tmp_path)
    assert list(out.graph.node[1].input) == ["x", "", "high"]
    assert [v.name for v in out.graph.input] == ["x", "w"]
    feeds = {"x": np.full((1, 4, 2), 9, np.float32), "w": np.array(5, np.float32)}
    assert run_reference(out, feeds)["y"].max() == 10


def test_unused_outputs_in_the_middle_stay_omitted(tmp_path: Path) -> None:
    proto = model(
        """g (float[2, 1, 3] x, float[1, 8, 3] w, float[1, 8, 2] r) => (float[1, 1, 2] c)
        { , , c = LSTM <hidden_size = 2> (x, w, r) }"""
    )
    assert list(round_trip(proto, tmp_path).graph.node[0].output) == ["", "", "c"]


def test_sequence_optional_and_type_attributes(tmp_path: Path) -> None:
    kind = helper.make_tensor_type_proto(FLOAT, [4])
    sequence = helper.make_sequence_type_proto(kind)
    maybe = helper.make_optional_type_proto(sequence)
    empty = helper.make_node("Optional", [], ["o"])
    empty.attribute.append(helper.make_attribute("type", sequence))
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["s"]), empty]
    outputs = [helper.make_value_info("s", sequence), helper.make_value_info("o", maybe)]
    proto = build(nodes, [info("x")], outputs)
    out = round_trip(proto, tmp_path)
    assert out.graph.output == proto.graph.output
    assert out.graph.node[1].attribute == empty.attribute


def test_custom_domains_pass_through(tmp_path: Path) -> None:
    node = helper.make_node(
        "Mystery",
        ["x", "", "w"],
        ["t", "u"],
        domain="acme",
        name="m",
        ints=[1, 2],
        text="é",
        texts=["a", "b"],
        floats=[0.1],
        table=helper.make_tensor("", TensorProto.INT4, [2], [1, 2]),
        tables=[helper.make_tensor("a", FLOAT, [1], [1.0])],
    )
    proto = linear()
    nodes = [node, helper.make_node("Add", ["t", "w"], ["y"])]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.opset_import.append(helper.make_opsetid("acme", 3))
    out = round_trip(proto, tmp_path)
    assert out.graph.node[0].attribute == node.attribute
    assert out.graph.node == proto.graph.node and out.opset_import == proto.opset_import


def test_accepts_every_kind_of_source(tmp_path: Path) -> None:
    gs = pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")
    proto = linear()
    onnx.save(proto, tmp_path / "model.onnx")
    sources = [
        proto,
        proto.SerializeToString(),
        tmp_path / "model.onnx",
        str(tmp_path / "model.onnx"),
        tmp_path,
        ir.from_proto(proto),
        gs.import_onnx(proto),
    ]
    for source in sources:
        graph = onnx_io.load(source)
        assert [node.op_type for node in graph.nodes()] == ["Add"], type(source)
        assert onnx_io.load(graph) is graph
    assert "can't load a model from int" in reason(7)


def test_loading_a_message_leaves_it_alone() -> None:
    proto = build(
        [helper.make_node("Constant", [], ["y"], sparse_value=sparse(""))], [], [info("y")]
    )
    before = proto.SerializeToString(deterministic=True)
    graph = onnx_io.load(proto)
    graph.main.outputs[0].name = "renamed"
    assert proto.SerializeToString(deterministic=True) == before
