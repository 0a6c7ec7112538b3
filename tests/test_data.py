"""Every kind of source gives back the values that were put in, shaped for the model."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper

from qgraph.data import DataSet, open_data
from qgraph.errors import DataError, UsageError

FILES = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def spec(name: str, dtype: Any, *shape: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, dtype=dtype, shape=shape)


X = [spec("x", "float32", "n", 3, None)]
TOKENS = [spec("ids", "int64", "b", "seq"), spec("mask", "int64", "b", "seq")]
RECURRENT = [
    spec("x", "float32", None, None),
    spec("state", "float32", 2, None, 4),
    spec("sr", "int64"),
]

arrays = st.tuples(st.integers(1, 7), st.just(3), st.integers(1, 4)).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-100, 100, width=32))
)


def stacked(samples: Any, name: str = "x") -> np.ndarray:
    return np.concatenate([sample[name] for sample in samples])


def write_npz(folder: Path, values: np.ndarray) -> Any:
    np.savez(folder / "d.npz", x=values)
    return folder / "d.npz"


def write_compressed(folder: Path, values: np.ndarray) -> Any:
    np.savez_compressed(folder / "c.npz", x=values)
    return folder / "c.npz"


def write_npz_fortran(folder: Path, values: np.ndarray) -> Any:
    np.savez(folder / "f.npz", x=np.asfortranarray(values))
    return str(folder / "f.npz")


def write_npy(folder: Path, values: np.ndarray) -> Any:
    np.save(folder / "d.npy", values)
    return folder / "d.npy"


def write_npy_fortran(folder: Path, values: np.ndarray) -> Any:
    np.save(folder / "f.npy", np.asfortranarray(values))
    return folder / "f.npy"


def write_folder(folder: Path, values: np.ndarray, one: Callable[[Path, np.ndarray], None]) -> Any:
    target = folder / one.__name__
    target.mkdir(exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    for index, value in enumerate(values):
        one(target / f"s{index}", value)
    return target


def npz(path: Path, value: np.ndarray) -> None:
    np.savez(f"{path}.npz", x=value[None], label=np.array(3))


def npy(path: Path, value: np.ndarray) -> None:
    np.save(f"{path}.npy", value)


def pb(path: Path, value: np.ndarray) -> None:
    Path(f"{path}.pb").write_bytes(numpy_helper.from_array(value[None], "x").SerializeToString())


def generator(values: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    yield from ({"x": value} for value in values)


WRITERS: dict[str, Callable[[Path, np.ndarray], Any]] = {
    "npz": write_npz,
    "npz compressed": write_compressed,
    "npz fortran": write_npz_fortran,
    "npy": write_npy,
    "npy fortran": write_npy_fortran,
    "folder of npz": lambda folder, values: write_folder(folder, values, npz),
    "folder of npy": lambda folder, values: write_folder(folder, values, npy),
    "folder of pb": lambda folder, values: write_folder(folder, values, pb),
    "array": lambda folder, values: values,
    "dict": lambda folder, values: {"x": values},
    "dict of lists": lambda folder, values: {"x": list(values)},
    "list": lambda folder, values: [{"x": value} for value in values],
    "generator": lambda folder, values: generator(values),
    "function": lambda folder, values: lambda: generator(values),
    "loader of batches": lambda folder, values: [{"x": values[:2]}, {"x": values[2:]}][
        : 1 + (len(values) > 2)
    ],
}


@pytest.mark.parametrize("kind", WRITERS)
@FILES
@given(values=arrays)
def test_every_source_gives_back_its_values(kind: str, values: np.ndarray, tmp_path: Path) -> None:
    data = open_data(WRITERS[kind](tmp_path, values), X)
    samples = list(data)
    assert all(s["x"].shape == (1, *values.shape[1:]) for s in samples)
    np.testing.assert_array_equal(stacked(samples), values)
    assert data.count in (None, len(values))
    assert data.rereadable == (kind != "generator")
    if data.rereadable:
        np.testing.assert_array_equal(stacked(data), values)


@pytest.mark.parametrize("kind", WRITERS)
def test_samples_bounds_every_source(kind: str, tmp_path: Path) -> None:
    values = np.arange(15, dtype=np.float32).reshape(5, 3, 1)
    np.testing.assert_array_equal(
        stacked(open_data(WRITERS[kind](tmp_path, values), X, samples=3)), values[:3]
    )


@pytest.mark.parametrize("kind", [k for k in WRITERS if k != "loader of batches"])
def test_a_fixed_batch_groups_samples_and_tells_what_is_left(kind: str, tmp_path: Path) -> None:
    values = np.arange(15, dtype=np.float32).reshape(5, 3, 1)
    data = open_data(WRITERS[kind](tmp_path, values), [spec("x", "float32", 2, 3, 1)])
    samples = list(data)
    assert [s["x"].shape for s in samples] == [(2, 3, 1)] * 2
    np.testing.assert_array_equal(stacked(samples), values[:4])
    assert data.describe()["unused_rows"] == 1


def test_recurrent_and_scalar_inputs_take_one_entry_a_sample() -> None:
    x, state = np.ones((3, 8), np.float32), np.zeros((3, 2, 1, 4), np.float32)
    data = open_data({"x": x, "state": state, "sr": np.array([8, 16, 8])}, RECURRENT)
    shapes = [{name: a.shape for name, a in s.items()} for s in data.batches(2)]
    assert shapes == [{"x": (1, 8), "state": (2, 1, 4), "sr": ()}] * 3
    assert [int(s["sr"]) for s in data] == [8, 16, 8]


def test_a_scalar_serves_every_sample() -> None:
    given_arrays = {
        "x": np.ones((2, 8), np.float32),
        "state": np.zeros((2, 2, 1, 4), np.float32),
        "sr": np.array(16),
    }
    assert [int(s["sr"]) for s in open_data(given_arrays, RECURRENT)] == [16, 16]


def test_ragged_lists_keep_their_lengths_and_batch_only_with_equal_neighbours() -> None:
    lengths = [3, 3, 5, 3]
    ids = [np.full(n, i, np.int64) for i, n in enumerate(lengths)]
    data = open_data({"ids": ids, "mask": [np.ones(n, np.int64) for n in lengths]}, TOKENS)
    assert [s["ids"].shape for s in data] == [(1, n) for n in lengths]
    assert [b["ids"].shape for b in data.batches(4)] == [(2, 3), (1, 5), (1, 3)]
    assert [b["ids"][:, 0].tolist() for b in data.batches(4)] == [[0, 1], [2], [3]]


def test_ragged_object_arrays_are_taken_from_memory() -> None:
    ids = np.empty(2, object)
    ids[:] = [np.zeros(3, np.int64), np.zeros(4, np.int64)]
    mask = [np.ones(3, np.int64), np.ones(4, np.int64)]
    assert [s["ids"].shape for s in open_data({"ids": ids, "mask": mask}, TOKENS)] == [
        (1, 3),
        (1, 4),
    ]


def test_a_time_axis_in_front_is_no_batch() -> None:
    inputs = [spec("x", "float32", "seq", 4)]
    data = open_data(np.zeros((3, 5, 4), np.float32), inputs)
    assert [s["x"].shape for s in data] == [(5, 4)] * 3
    with pytest.raises(DataError, match=r"expected \[seq, 4\], got \[4\]"):
        open_data(np.zeros((5, 4), np.float32), inputs)


def test_empty_past_of_a_decoder_is_data() -> None:
    inputs = [spec("ids", "int64", "b", "s"), spec("past", "float32", "b", 2, "p", 4)]
    given_arrays = {"ids": np.ones((3, 5), np.int64), "past": np.ones((3, 2, 0, 4), np.float32)}
    assert next(iter(open_data(given_arrays, inputs)))["past"].shape == (1, 2, 0, 4)


def test_onnx_test_data_sets_come_in_numeric_order(tmp_path: Path) -> None:
    for index in (10, 2):
        folder = tmp_path / f"test_data_set_{index}"
        folder.mkdir()
        for k, name in enumerate(("ids", "mask")):
            value = np.full((1, 3), 100 * k + index, np.int64)
            tensor = numpy_helper.from_array(value, name)
            (folder / f"input_{k}.pb").write_bytes(tensor.SerializeToString())
        (folder / "output_0.pb").write_bytes(tensor.SerializeToString())
    samples = list(open_data(tmp_path, TOKENS))
    assert [(int(s["ids"][0, 0]), int(s["mask"][0, 0])) for s in samples] == [(2, 102), (10, 110)]
    assert len(list(open_data(tmp_path / "test_data_set_2", TOKENS))) == 1


def test_a_function_is_imported_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "feeding_folder"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "lines.py").write_text(
        "import itertools, numpy as np\n"
        "def forever():\n"
        "    import feeding_helper\n"
        "    for i in itertools.count():\n"
        "        yield {'x': np.full((3, 1), i, np.float32)}\n"
    )
    (tmp_path / "feeding_helper.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    data = open_data("feeding_folder.lines:forever", X, samples=4)
    assert stacked(data)[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert data.rereadable and data.count is None and data.expected == 4
    assert sys.path[0] != str(tmp_path)  # so it can't hide installed packages
    assert len(list(open_data("feeding_folder.lines:forever", X))) == 512


def test_random_data_is_marked_repeatable_and_fits() -> None:
    inputs = [
        spec("image", np.float16, "n", 3, 8, "width"),
        spec("ids", "int32", "n", 5),
        spec("raw", "uint8", "n", 4),
        spec("flag", "bool", "n"),
        spec("half", ml_dtypes.bfloat16, "n", 2),
    ]
    data = open_data("random:width=12", inputs, samples=3, seed=1)
    assert data.random and data.describe()["random"] and data.count == 3
    first, again = list(data), list(open_data("random:width=12", inputs, samples=3, seed=1))
    assert first[0]["image"].shape == (1, 3, 8, 12) and first[0]["half"].dtype == ml_dtypes.bfloat16
    for a, b in zip(first, again, strict=True):
        assert all((a[name] == b[name]).all() for name in a)
    other = next(iter(open_data("random:width=12", inputs, seed=2)))
    assert not (other["image"] == first[0]["image"]).all()
    assert not open_data(np.zeros((1, 3, 1), np.float32), X).random
    with pytest.raises(UsageError, match="did you mean 'width'"):
        open_data("random:widht=12", inputs)


def test_inputs_may_be_described_by_an_onnx_ir_value_or_by_onnxruntime() -> None:
    value = ir.Value(
        name="x", shape=ir.Shape(["n", 3, None]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    node_arg = SimpleNamespace(name="x", type="tensor(float)", shape=["n", 3, None])
    for one in (value, node_arg):
        data = open_data(np.zeros((2, 3, 4)), [one])
        assert next(iter(data))["x"].dtype == np.float32
        assert data.count == 2


def fingerprint(source: Any, **options: Any) -> str | None:
    return open_data(source, X, **options).fingerprint()


@pytest.mark.parametrize("kind", [k for k in WRITERS if k != "generator"])
def test_the_fingerprint_follows_content_and_choice_not_place(kind: str, tmp_path: Path) -> None:
    values = np.arange(15, dtype=np.float32).reshape(5, 3, 1)
    changed = values.copy()
    changed[3, 0, 0] += 1
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    first, moved, other = (
        WRITERS[kind](folder, v)
        for folder, v in zip(folders, (values, values, changed), strict=True)
    )
    assert fingerprint(first) == fingerprint(moved) != fingerprint(other)
    assert len({fingerprint(first), fingerprint(first, samples=4), fingerprint(other)}) == 3
    calibration, held = open_data(first, X).split(2)
    assert calibration.fingerprint() != held.fingerprint()


def test_a_generator_has_a_fingerprint_once_it_was_read() -> None:
    values = np.ones((4, 3, 1), np.float32)
    data = open_data(generator(values), X)
    assert data.fingerprint() is None
    list(data)
    assert data.fingerprint() == fingerprint([{"x": value} for value in values])
    calibration, held = open_data(generator(values), X).split(0.5)
    assert calibration.fingerprint() is None
    assert len([*calibration, *held]) == 4
    assert calibration.fingerprint() not in (None, held.fingerprint())


def test_npz_is_read_one_sample_at_a_time(tmp_path: Path) -> None:
    import tracemalloc

    values = np.random.default_rng(0).random((64, 3, 20_000), np.float32)  # 15 MB
    np.savez_compressed(tmp_path / "d.npz", x=values)
    tracemalloc.start()
    count = sum(1 for _ in open_data(tmp_path / "d.npz", X))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 64 and peak < values.nbytes / 8


def test_describe_can_be_written_as_json(tmp_path: Path) -> None:
    import json

    data: DataSet = open_data(write_npz(tmp_path, np.ones((2, 3, 1), np.float32)), X)
    facts = json.loads(json.dumps(data.describe()))
    assert facts["kind"] == "npz" and facts["samples"] == 2 and facts["random"] is False
    assert facts["source"].endswith("d.npz") and len(facts["fingerprint"]) == 32
