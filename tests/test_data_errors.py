"""Bad data gets one line that names the file and the input, and harms nothing."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from qgraph.data import limits, open_data
from qgraph.errors import DataError, ModelError, UsageError


def spec(name: str, dtype: Any, *shape: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, dtype=dtype, shape=shape)


X = [spec("x", "float32", "n", 3, 4)]
TOKENS = [spec("ids", "int64", "b", "seq"), spec("mask", "int64", "b", "seq")]
GOOD = np.ones((3, 3, 4), np.float32)


def refused(source: Any, *words: str, inputs: Any = X, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        list(open_data(source, inputs, **options))
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line
    return line


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"
    text += " " * (63 - (len(text) + 10) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, raw in members.items():
            out.writestr(f"{name}.npy", raw)
    return path


def test_missing_paths(tmp_path: Path) -> None:
    for name in ("nowhere.npz", "nowhere", "a/b.npy"):
        refused(tmp_path / name, f"{tmp_path / name}: there is no such file or folder")
    refused("x" * 5000, "can't be read")
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", "notes.txt: is no data file", ".npz")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty: has no data files", ".npz")


def test_wrong_names_say_what_there_is_and_what_is_expected(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", ids=np.ones((2, 3), np.int64), maks=np.ones((2, 3), np.int64))
    refused(
        tmp_path / "d.npz",
        "d.npz: has no array for input 'mask'",
        "keys: ids, maks; inputs: ids, mask",
        "rename 'maks' to 'mask'",
        inputs=TOKENS,
    )
    refused({"y": GOOD}, "has no array for input 'x' (keys: y; inputs: x)")
    refused({}, "keys: none")
    refused(GOOD, "one array can't feed 2 inputs (ids, mask)", inputs=TOKENS)
    np.save(tmp_path / "d.npy", GOOD)
    refused(tmp_path / "d.npy", "d.npy: one array can't feed 2 inputs", inputs=TOKENS)


@pytest.mark.parametrize(
    ("inputs", "shape", "expected", "got"),
    [
        (X, (2, 3, 5), "[n, 3, 4]", "[3, 5]"),
        (X, (2, 3), "[n, 3, 4]", "[3]"),
        (X, (2, 2, 2, 3, 4, 5), "[n, 3, 4]", "[2, 2, 3, 4, 5]"),
        ([spec("x", "float32", 4, 3)], (2, 5, 3), "[4, 3]", "[5, 3]"),
        ([spec("x", "float32", 1, 3)], (2, 2, 3), "[1, 3]", "[2, 3]"),
        ([spec("x", "float32", 1, None, 3)], (2, 7, 4), "[1, ?, 3]", "[7, 4]"),
    ],
)
def test_wrong_shapes_say_expected_and_got(
    inputs: Any, shape: tuple[int, ...], expected: str, got: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros(shape, np.float32))
    words = ("d.npz: sample 0, input 'x'", f"expected {expected}, got {got}")
    refused(tmp_path / "d.npz", *words, inputs=inputs)


def test_channels_last_data_gets_a_hint() -> None:
    inputs = [spec("x", "float32", "n", 3, 8, 8)]
    refused(np.zeros((2, 8, 8, 3), np.float32), "expected [n, 3, 8, 8]", inputs=inputs)
    batch = [{"x": np.zeros((1, 8, 8, 3), np.float32)}]
    fixed = [spec("x", "float32", 1, 3, 8, 8)]
    refused(batch, "got [1, 8, 8, 3]", "NCHW", inputs=fixed)


def test_inputs_that_disagree() -> None:
    ids = np.ones((2, 3), np.int64)
    refused({"ids": ids, "mask": ids[:1]}, "number of samples (ids 2, mask 1)", inputs=TOKENS)
    words = ("sample 0", "axis 'seq' is 3 in input 'ids' and 2 in 'mask'")
    refused({"ids": ids, "mask": ids[:, :2]}, *words, inputs=TOKENS)
    two = [spec("a", "float32", None, 2), spec("b", "float32", None, 2)]
    item = {"a": np.ones((3, 2), np.float32), "b": np.ones((2, 2), np.float32)}
    refused([item], "differ in their number of rows (a 3, b 2)", inputs=two)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (-np.inf, "infinity")])
def test_nan_and_infinity_name_the_sample(value: float, word: str, tmp_path: Path) -> None:
    bad = GOOD.copy()
    bad[2, 1, 3] = value
    np.savez(tmp_path / "d.npz", x=bad)
    refused(tmp_path / "d.npz", "d.npz: sample 2, input 'x'", f"has {word} at index [1, 3]")


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 0, 4)])
def test_empty_data(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros(shape, np.float32))
    refused(tmp_path / "d.npz", "d.npz: is empty")
    np.save(tmp_path / "d.npy", np.zeros(shape, np.float32))
    refused(tmp_path / "d.npy", "d.npy: is empty")


def test_no_items() -> None:
    refused([], "data: gives no samples")
    refused(lambda: iter(()), "data: gives no samples")
    refused(
        GOOD, "gives no samples (the model's batch is 8)", inputs=[spec("x", "float32", 8, 3, 4)]
    )


def test_rows_of_a_fixed_batch_must_agree_in_shape() -> None:
    rows = [np.ones((1, n), np.float32) for n in (2, 3)]
    inputs = [spec("x", "float32", 2, 1, None)]
    refused({"x": rows}, "array 'x'", "differ in shape, [1, 2] and [1, 3]", inputs=inputs)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    bad = np.array([Evil(), Evil()], object)
    np.savez(tmp_path / "d.npz", x=bad)
    np.save(tmp_path / "d.npy", bad)
    for name in ("d.npz", "d.npy"):
        refused(tmp_path / name, name, "holds Python objects, which would have to be unpickled")
    assert not (tmp_path / "owned").exists()


def test_records_and_foreign_files(tmp_path: Path) -> None:
    np.save(tmp_path / "r.npy", np.zeros(3, [("a", "<f4")]))
    refused(tmp_path / "r.npy", "r.npy: holds records")
    for name in ("z.npz", "z.npy", "z.pb"):
        (tmp_path / name).write_bytes(b"neither zip nor numpy" * 10)
        refused(tmp_path / name, name, "is damaged or not a")
        (tmp_path / name).write_bytes(b"")
        refused(tmp_path / name, name)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_truncated_files_are_one_line_errors(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("t")
    np.savez_compressed(folder / "d.npz", x=np.random.default_rng(0).random((4, 3, 4), np.float32))
    np.save(folder / "d.npy", GOOD)
    tensor = numpy_helper.from_array(GOOD, "x")
    (folder / "d.pb").write_bytes(tensor.SerializeToString())
    path = folder / data.draw(st.sampled_from(["d.npz", "d.npy", "d.pb"]))
    raw = path.read_bytes()
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    refused(path, path.name)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_bytes_are_read_or_refused_but_never_crash(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("f")
    path = folder / data.draw(st.sampled_from(["d.npz", "d.npy", "d.pb"]))
    if path.suffix == ".npz":
        np.savez_compressed(path, x=GOOD)
    elif path.suffix == ".npy":
        np.save(path, GOOD)
    else:
        path.write_bytes(numpy_helper.from_array(GOOD, "x").SerializeToString())
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        list(open_data(path, X))
    except DataError as error:
        assert "\n" not in str(error)


def test_headers_that_lie_about_their_size(tmp_path: Path) -> None:
    for shape in ("(1000000000000, 3, 4)", "(3, 3, 40)", "(-3, 3, 4)", "(2, 3, 4)"):
        raw = header(shape) + GOOD.tobytes()
        (tmp_path / "d.npy").write_bytes(raw)
        refused(tmp_path / "d.npy", "d.npy: is truncated or damaged: the header declares")
        archive(tmp_path / "d.npz", x=raw)
        refused(tmp_path / "d.npz", "d.npz[x]: is truncated or damaged: the header declares")


def test_zip_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INFLATION_FREE_BYTES", 1 << 16)
    zeros = np.zeros((3, 3, 400_000), np.float32)
    np.savez_compressed(tmp_path / "bomb.npz", x=zeros)
    inputs = [spec("x", "float32", "n", 3, None)]
    refused(tmp_path / "bomb.npz", "bomb.npz[x]: would inflate from", "MiB", inputs=inputs)
    np.savez(tmp_path / "honest.npz", x=zeros)
    assert open_data(tmp_path / "honest.npz", inputs).count == 3


def test_one_sample_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_bytes", lambda: 40)
    np.savez(tmp_path / "d.npz", x=GOOD)
    refused(tmp_path / "d.npz", "d.npz[x]: needs 48 bytes at once, more than half of")


def test_overlapping_zip_members(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).random((50, 3, 4), np.float32))
    with zipfile.ZipFile(path, "a") as out:
        first = out.infolist()[0]
        for name in ("y.npy", "z.npy"):
            twin = zipfile.ZipInfo(name)
            for slot in ("CRC", "compress_size", "file_size", "header_offset", "compress_type"):
                setattr(twin, slot, getattr(first, slot))
            out.filelist.append(twin)
            out.NameToInfo[name] = twin
        out._didModify = True
    refused(path, "d.npz: has members that overlap")


def test_encrypted_and_unknown_compression(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=GOOD)
    raw = bytearray(buffer.getvalue())
    central = raw.rindex(b"PK\x01\x02")
    for offset, value in ((8, 1), (10, 99)):  # flag bit 0: encrypted; method 99: unknown
        bad = bytearray(raw)
        bad[central + offset] = value
        bad[offset - 2] = value
        (tmp_path / "d.npz").write_bytes(bad)
        refused(tmp_path / "d.npz", "d.npz")


def test_pb_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.pb"
    external = numpy_helper.from_array(GOOD, "x")
    external.ClearField("raw_data")
    external.data_location = onnx.TensorProto.EXTERNAL
    entry = external.external_data.add()
    entry.key, entry.value = "location", "/etc/hostname"
    path.write_bytes(external.SerializeToString())
    refused(path, "one.pb: keeps its values in another file")
    short = numpy_helper.from_array(GOOD, "x")
    short.dims[0] = 10**12
    path.write_bytes(short.SerializeToString())
    refused(path, "one.pb: is a damaged TensorProto")
    path.write_bytes(onnx.helper.make_model(onnx.GraphProto()).SerializeToString())
    refused(path, "one.pb")
    monkeypatch.setattr(limits, "MAX_PB_BYTES", 100)
    path.write_bytes(numpy_helper.from_array(GOOD, "x").SerializeToString())
    refused(path, "one.pb: holds", "more than 100 bytes")


def test_incomplete_test_data_sets(tmp_path: Path) -> None:
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    raw = numpy_helper.from_array(np.ones((1, 3), np.int64)).SerializeToString()
    (folder / "output_0.pb").write_bytes(raw)
    refused(tmp_path, "has outputs but no input_0.pb", inputs=TOKENS)
    (folder / "input_1.pb").write_bytes(raw)
    refused(tmp_path, "test_data_set_0: holds input_1.pb, the model has 2 inputs", inputs=TOKENS)


def test_folders_of_mixed_kinds(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GOOD)
    np.savez(tmp_path / "b.npz", x=GOOD)
    refused(tmp_path, "mixes 1 .npy and 1 .npz files")


def test_links_in_a_circle_and_broken_links(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "a.npy", GOOD)
    (folder / "again").symlink_to(folder, target_is_directory=True)
    refused(folder, "again: is reached twice through a link")
    (folder / "again").unlink()
    (folder / "self.npy").symlink_to(folder / "self.npy")
    refused(folder, "self.npy: can't be read")
    (folder / "self.npy").unlink()
    (folder / "gone.npy").symlink_to(tmp_path / "nothing.npy")
    refused(folder, "gone.npy: can't be read (No such file or directory)")
    (folder / "gone.npy").unlink()
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    refused(tmp_path / "loop.npz", "loop.npz")


def test_pipes_and_deep_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    refused(tmp_path, "pipe.npy: is not a regular file")
    refused(tmp_path / "pipe.npy", "pipe.npy: is no data file")
    (tmp_path / "pipe.npy").unlink()
    (tmp_path / "/".join("abcd")).mkdir(parents=True)
    monkeypatch.setattr(limits, "MAX_FOLDER_DEPTH", 3)
    refused(tmp_path, "is nested more than 3 folders deep")
    monkeypatch.setattr(limits, "MAX_FOLDER_ENTRIES", 2)
    refused(tmp_path, "has more than 2 entries")


FUNCTIONS: dict[str, tuple[str, str]] = {
    "no.such.module:feed": ("module 'no.such.module' can't be imported", "ModuleNotFoundError"),
    "feeding:missing": ("there is no 'missing'", "a_list"),
    "feeding:constant": ("is a int, not a function", ""),
    "broken_feeding:feed": ("SyntaxError", "can't be imported"),
    "feeding:number": ("raised TypeError when called", "not iterable"),
    "feeding:a_list": ("sample 0: gives a list, not a dict", "keys x"),
    "feeding:nones": ("sample 0: gives a NoneType, not a dict", ""),
    "feeding:raises": ("raised ValueError at sample 1", "(no more)"),
    "feeding:wrong": ("sample 0: has no array for input 'x' (keys: y", ""),
    "feeding:objects": ("input 'x'", ""),
}


@pytest.mark.parametrize("source", FUNCTIONS)
def test_functions(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_feeding.py").write_text("def (")
    (tmp_path / "feeding.py").write_text(
        "import numpy as np\n"
        "constant = 3\n"
        "def number(): return 3\n"
        "def a_list(): yield [1]\n"
        "def nones(): yield None\n"
        "def wrong(): yield {'y': 1}\n"
        "def objects(): yield {'x': object()}\n"
        "def raises():\n"
        "    yield {'x': np.ones((3, 4), np.float32)}\n"
        "    raise ValueError('no more')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    refused(source, source, *FUNCTIONS[source])


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="-1 samples"):
        open_data(GOOD, X, samples=-1)
    refused(3, "data can't be read from a int")
    with pytest.raises(ModelError, match="distinct names"):
        open_data(GOOD, [])
    with pytest.raises(ModelError, match="input 's'.*can't be fed from data"):
        open_data(GOOD, [spec("s", "seq(tensor(float))", "n")])
    with pytest.raises(DataError, match="unknown rank"):
        open_data("random", [SimpleNamespace(name="x", dtype="float32", shape=None)])
    refused("random", "has no random values", inputs=[spec("x", "object", "n")])


@pytest.mark.parametrize(
    "make", [lambda f: f / "d.npz", lambda f: f / "d.npy", lambda f: f], ids=["npz", "npy", "dir"]
)
def test_unreadable_files(make: Callable[[Path], Path], tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    np.savez(tmp_path / "d.npz", x=GOOD)
    np.save(tmp_path / "d.npy", GOOD)
    path = make(tmp_path)
    path.chmod(0)
    refused(path, "can't be read (Permission denied)")
    path.chmod(0o700)
