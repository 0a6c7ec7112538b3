"""Large weights stay in the model's file: the same graph, the same file, a fraction of the memory."""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxfiles import build, info

from qgraph import onnx_io, onnx_wire
from qgraph.errors import ModelError
from qgraph.graph import Graph
from qgraph.lazy import on_disk


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_wire, "MAPPED_FILE_BYTES", 0)
    monkeypatch.setattr(onnx_wire, "MAPPED_WEIGHT_BYTES", 64)


def weights() -> list[onnx.TensorProto]:
    rng = np.random.default_rng(0)
    arrays = {
        "float": rng.standard_normal((5, 7)).astype(np.float32),
        "half": rng.standard_normal((3, 40)).astype(np.float16),
        "brain": rng.standard_normal((3, 41)).astype(ml_dtypes.bfloat16),
        "bytes": rng.integers(0, 255, (97,)).astype(np.uint8),
        "nibbles": rng.integers(0, 15, (301,)).astype(ml_dtypes.uint4),
        "small": np.ones(2, np.float32),
        "empty": np.zeros((0, 900), np.float32),
    }
    found = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    found[0].doc_string = "with a text"
    found[0].metadata_props.add(key="layer", value="1")
    # Values in fields of their own, not as raw bytes.
    found.append(helper.make_tensor("fields", TensorProto.FLOAT, [50], list(range(50))))
    return found


def model() -> onnx.ModelProto:
    tensors = weights()
    nodes = [helper.make_node("Identity", [t.name], [f"y_{t.name}"]) for t in tensors]
    outputs = [info(f"y_{t.name}", t.data_type, t.dims) for t in tensors]
    proto = build(nodes, [], outputs, tensors)
    proto.metadata_props.add(key="author", value="someone")
    return proto


def by_name(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Order initializers by name, and store them as raw data, which may have been fields."""
    tensors = sorted(proto.graph.initializer, key=lambda t: t.name)
    for tensor in tensors:
        if tensor.float_data:
            tensor.raw_data = np.array(tensor.float_data, np.float32).tobytes()
            tensor.ClearField("float_data")
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(tensors)
    return proto


def load_whole(path: Path) -> Graph:
    return onnx_io.load(path.read_bytes())


def test_weights_are_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    graph = onnx_io.load(path)
    mapped = {name for name, v in graph.main.initializers.items() if on_disk(graph.array(v))}
    assert mapped == {"float", "half", "brain", "bytes"}
    assert by_name(onnx_io.to_proto(graph)) == by_name(onnx_io.to_proto(load_whole(path)))


def test_writing_part_by_part_gives_the_same_model(tmp_path: Path) -> None:
    path, again = tmp_path / "m.onnx", tmp_path / "again.onnx"
    onnx.save(model(), path)
    graph = onnx_io.load(path)
    onnx_io.save(graph, again)
    assert by_name(onnx.load(again)) == by_name(onnx_io.to_proto(load_whole(path)))
    onnx.checker.check_model(str(again), full_check=True)
    # The graph is as it was, in its order; what has its large weights last stays the same file.
    assert list(graph.main.initializers) == [t.name for t in weights()]
    onnx_io.save(onnx_io.load(again), path)
    onnx_io.save(onnx_io.load(path), again)
    assert path.read_bytes() == again.read_bytes()


def test_a_file_that_is_replaced_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    graph = onnx_io.load(path)
    before = onnx_io.to_proto(load_whole(path))
    onnx_io.save(graph, path)
    onnx_io.save(graph, path)
    assert by_name(onnx.load(path)) == by_name(before)
    assert by_name(onnx_io.to_proto(graph)) == by_name(before)


def test_initializers_that_are_inputs_too(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.arange(100, dtype=np.float32), "w")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    path = tmp_path / "m.onnx"
    onnx.save(build(nodes, [info("x", 1, [100]), info("w", 1, [100])], [info("y")], [weight]), path)
    onnx_io.save(onnx_io.load(path), tmp_path / "again.onnx")
    proto = onnx.load(tmp_path / "again.onnx")
    assert [v.name for v in proto.graph.input] == ["x", "w"]
    assert proto.graph.initializer[0] == weight


def test_texts_that_are_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model().SerializeToString().replace(b"with a text", b"\x80ith a text"))
    assert onnx_io.to_proto(onnx_io.load(path)) == onnx_io.to_proto(load_whole(path))


@pytest.mark.parametrize("change", ["dims", "twice", "type", "long"])
def test_what_is_wrong_is_said_as_for_small_files(change: str, tmp_path: Path) -> None:
    proto = model()
    tensor = proto.graph.initializer[0]
    if change == "dims":
        tensor.dims[0] = 6
    elif change == "twice":
        proto.graph.initializer.append(tensor)
    elif change == "type":
        tensor.data_type = 99
    else:
        tensor.raw_data += b"1234"
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError) as found:
        onnx_io.load(path)
    with pytest.raises(ModelError) as expected:
        load_whole(path)
    assert str(found.value).replace(str(path), "<bytes>") == str(expected.value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_fare_as_when_read_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(model().SerializeToString())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(1, len(content)))]
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "m.onnx"
    path.write_bytes(content)
    results = []
    for load in (onnx_io.load, load_whole):
        try:
            found = by_name(onnx_io.to_proto(load(path)))
            found.DiscardUnknownFields()  # a damaged tag makes one: of large weights none is kept
            results.append(found)
        except ModelError:
            results.append(None)
    assert results[0] == results[1]


PEAK = """
import resource, sys
import onnx_ir, onnx
from qgraph import flow, onnx_io
from qgraph.pipeline import Pipeline
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
graph = onnx_io.load(sys.argv[1])
onnx_io.save(graph, sys.argv[2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_stays_small(tmp_path: Path) -> None:
    shape = (1024, 4096)
    tensors = [
        numpy_helper.from_array(np.full(shape, index, np.float32), f"w{index}")
        for index in range(12)
    ]
    nodes = [helper.make_node("Sum", [t.name for t in tensors], ["y"])]
    path = tmp_path / "m.onnx"
    onnx.save(build(nodes, [], [info("y", 1, shape)], tensors), path)
    command = [sys.executable, "-c", PEAK, str(path), str(tmp_path / "again.onnx")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert path.stat().st_size > 12 * (16 << 20)
    assert int(done.stdout) < 4 * (16 << 20)
