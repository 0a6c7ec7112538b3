"""Bad files get one line; nothing outside the model's folder is read."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxfiles import build, info, linear, reason

from qgraph import onnx_io
from qgraph.errors import ModelError

# -- bad files ---------------------------------------------------------------------------------


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert "no such file" in reason(path)
    assert "folder without model.onnx" in reason(tmp_path)
    path.write_bytes(b"")
    assert "empty" in reason(path)
    path.write_text("this is no model, but a text of some length\n" * 20)
    assert "not an ONNX" in reason(path)
    path.write_bytes(onnx.ModelProto().SerializeToString() + b"\x08\x0a")
    assert "not an ONNX model" in reason(path)
    assert str(path) in reason(path)


def test_truncated_files_never_load(tmp_path: Path) -> None:
    data = linear(numpy_helper.from_array(np.ones(4, np.float32), "w")).SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(1, len(data) - 4, 7):
        path.write_bytes(data[:length])
        reason(path)


def test_random_bytes_never_load() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 10, 100, 1000, 10_000):
        for _ in range(20):
            reason(rng.bytes(size))


def test_flipped_bytes_load_or_are_refused() -> None:
    data = bytearray(linear().SerializeToString())
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(400):
        broken = bytearray(data)
        broken[rng.integers(len(data))] = rng.integers(256)
        try:
            graph = onnx_io.load(bytes(broken))
            for value in graph.initializers:
                graph.array(value)
            onnx_io.to_proto(graph)  # refuses texts that are not UTF-8, as in doc strings
        except ModelError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_invalid_graphs() -> None:
    proto = linear()
    proto.graph.node[0].op_type = "Addd"
    assert "Addd" in reason(proto)
    proto = linear()
    proto.graph.node[0].input[0] = "nowhere"
    assert "nowhere" in reason(proto)
    proto = linear()
    proto.graph.initializer[0].data_type = 99
    assert "'w' has the unknown data type 99" in reason(proto)
    proto = linear()
    proto.graph.initializer[0].raw_data += b"\0"
    assert "'w' has 17 bytes of data, its type and shape need 16" in reason(proto)
    proto = linear()
    proto.graph.initializer[0].dims[0] = -4
    assert "negative" in reason(proto)


def nested(depth: int) -> onnx.ModelProto:
    body = helper.make_graph([helper.make_node("Neg", ["x"], ["y0"])], "b", [], [info("y0")])
    for level in range(1, depth):
        node = helper.make_node("If", ["c"], [f"y{level}"], then_branch=body, else_branch=body)
        body = helper.make_graph([node], "b", [], [info(f"y{level}")])
    inputs = [info("x"), info("c", TensorProto.BOOL, [])]
    del body.input[:]
    return build(body.node, inputs, body.output)


def chain_of_bodies(depth: int) -> onnx.ModelProto:
    """One body a level, so that depth costs no space."""
    proto = build([], [info("x"), info("c", TensorProto.BOOL, [])], [info("y")])
    graph = proto.graph
    for _ in range(depth):
        node = graph.node.add(op_type="If", input=["c"], output=["y"])
        attr = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        graph = attr.g
    return proto


def test_deep_nesting() -> None:
    onnx_io.load(nested(6))
    assert "nested deeper than 50" in reason(chain_of_bodies(200))
    assert reason(chain_of_bodies(200).SerializeToString())


# -- external data -----------------------------------------------------------------------------


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """`m/model.onnx` with one weight of 4000 floats in `m/weights.bin`, behind 16 other bytes."""
    folder = tmp_path / "m"
    folder.mkdir()
    proto = linear(numpy_helper.from_array(np.arange(4000, dtype=np.float32), "w"))
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4000
    tensor = proto.graph.initializer[0]
    (folder / "weights.bin").write_bytes(bytes(16) + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "16"), ("length", "16000")):
        tensor.external_data.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return folder / "model.onnx"


def edit(path: Path, **fields: str | None) -> Path:
    """Change external data entries of the only weight; None removes one."""
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.graph.initializer[0]
    entries = {entry.key: entry.value for entry in tensor.external_data} | fields
    del tensor.external_data[:]
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_is_read_when_asked_for(external: Path) -> None:
    graph = onnx_io.load(external)
    (weight,) = graph.initializers
    assert isinstance(weight.const_value, ir.ExternalTensor)
    assert weight.const_value.raw is None  # not even mapped
    array = graph.array(weight)
    assert array is not None
    np.testing.assert_array_equal(array, np.arange(4000))
    (tensor,) = onnx_io.to_proto(graph).graph.initializer
    assert tensor.data_location == TensorProto.DEFAULT and not tensor.external_data
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), np.arange(4000))


def test_external_data_survives_saving_elsewhere_and_in_place(external: Path) -> None:
    graph = onnx_io.load(external)
    other = external.parent.parent / "other.onnx"
    onnx_io.save(graph, other, external=True)
    np.testing.assert_array_equal(
        numpy_helper.to_array(onnx.load(other).graph.initializer[0]), np.arange(4000)
    )
    # In place, twice, and what is left moves to the front of a file still read from.
    again = onnx_io.load(other)
    again.constant("more", -np.arange(4000, dtype=np.float32))
    onnx_io.save(again, other, external=True)
    again = onnx_io.load(other)
    (add,) = again.nodes("Add")
    again.set_input(add, 1, again.main.initializers["more"])
    assert again.drop_unread_initializers() == 1
    for _ in range(2):
        onnx_io.save(again, other, external=True)
        (tensor,) = onnx.load(other).graph.initializer
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), -np.arange(4000))
    array = again.array(again.initializers[0])
    assert array is not None
    np.testing.assert_array_equal(array, -np.arange(4000))


def test_external_tensor_in_an_attribute(external: Path) -> None:
    proto = onnx.load(external, load_external_data=False)
    tensor = TensorProto()
    tensor.CopyFrom(proto.graph.initializer[0])
    del proto.graph.initializer[:]
    constant = helper.make_node("Constant", [], ["w"])
    attr = constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attr.t.CopyFrom(tensor)
    nodes = [constant, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    external.write_bytes(proto.SerializeToString())
    graph = onnx_io.load(external)
    for forced in (True, False):
        copy = external.parent.parent / f"copy{forced}.onnx"
        onnx_io.save(graph, copy, external=forced)
        (saved,) = [n for n in onnx.load(copy).graph.node if n.op_type == "Constant"]
        array = numpy_helper.to_array(saved.attribute[0].t)
        np.testing.assert_array_equal(array, np.arange(4000))


@pytest.mark.parametrize("location", ["../secret", "{folder}/weights.bin", "link", "", "a/../../s"])
def test_external_data_outside_the_folder_is_refused(external: Path, location: str) -> None:
    (external.parent.parent / "secret").write_bytes(bytes(20_000))
    (external.parent / "link").symlink_to("../secret")
    text = reason(edit(external, location=location.format(folder=external.parent)))
    assert "leaves the model's folder" in text


def test_links_are_refused_even_inside_the_folder(external: Path) -> None:
    # onnx's checker refuses every symbolic link; the message is ours.
    (external.parent / "link").symlink_to("weights.bin")
    assert "'link' is a symbolic link; copy the file" in reason(edit(external, location="link"))
    os.link(external.parent / "weights.bin", external.parent / "twin.bin")
    assert "several hard links" in reason(edit(external, location="weights.bin"))


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"location": "absent.bin"}, "is missing"),
        ({"location": "."}, "is missing"),
        ({"offset": "17"}, "has 16016 bytes, 'w' needs 16017"),
        ({"offset": "-16"}, "offset -16"),
        ({"length": "100"}, "with 100 bytes, its type and shape need 16000"),
        ({"length": "99999999999999"}, "its type and shape need 16000"),
        ({"offset": "many"}, "malformed"),
    ],
)
def test_wrong_external_entries(external: Path, fields: dict[str, str], want: str) -> None:
    assert want in reason(edit(external, **fields))


def test_external_entries_may_be_absent(external: Path) -> None:
    edit(external, length=None)
    assert onnx_io.load(external).initializers


def test_truncated_external_file(external: Path) -> None:
    weights = external.parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "truncated" in reason(external)
    assert "has no folder" in reason(external.read_bytes())
