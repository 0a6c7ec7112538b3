"""Element types: what is converted, what is refused, and what comes back bit by bit."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from qgraph.data import open_data
from qgraph.errors import DataError


def spec(name: str, dtype: Any, *shape: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, dtype=dtype, shape=shape)


@pytest.mark.parametrize(
    ("have", "want", "values"),
    [
        ("float64", "float32", [1.5, -3e38]),
        ("float32", "float16", [0.1, 6e4]),
        ("float16", "float32", [0.1, 6e4]),
        ("int32", "int64", [-5, 2**31 - 1]),
        ("int64", "int32", [-5, 2**31 - 1]),
        ("uint8", "int64", [0, 255]),
        ("int64", "bool", [0, 1]),
        ("bool", "int64", [True, False]),
        (">f4", "float32", [1, 2]),
        ("<U3", "object", ["ab", "c"]),
    ],
)
def test_types_are_converted_where_nothing_is_lost(have: str, want: str, values: list[Any]) -> None:
    given_array = np.array([values], have)
    sample = next(iter(open_data(given_array, [spec("x", want, "n", 2)])))["x"]
    assert sample.dtype == np.dtype(want)
    np.testing.assert_array_equal(sample, given_array.astype(want))


@pytest.mark.parametrize(
    ("have", "want", "value", "message"),
    [
        ("float64", "float32", 1e39, r"float64 value 1e\+39, which float32 can't hold"),
        ("float32", "float16", 7e4, "which float16 can't hold"),
        ("float32", ml_dtypes.float8_e4m3fn, 1e4, "which float8_e4m3fn can't hold"),
        ("int64", "int32", 2**31, "2147483648, which int32 can't hold"),
        ("uint64", "int64", 2**64 - 1, "18446744073709551615, which int64 can't hold"),
        ("int64", "uint64", -1, "-1, which uint64 can't hold"),
        ("int64", "bool", 2, "2, which bool can't hold"),
        ("uint8", "float32", 1, "uint8, the model takes float32; scale it as in training"),
        ("int64", "float32", 1, "int64, the model takes float32; save it as float32"),
        ("float32", "int64", 1.0, "float32, the model takes int64"),
        ("complex64", "float32", 1, "complex64"),
        ("<U3", "float32", "a", "is strings, the model takes float32"),
        ("float32", "object", 1, "the model takes strings"),
    ],
)
def test_types_are_refused_where_something_is_lost(
    have: Any, want: Any, value: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_data(np.full((1, 2), value, have), [spec("x", want, "n", 2)])
    assert "sample 0, input 'x'" in str(caught.value) and "\n" not in str(caught.value)


def test_numpy_files_give_bfloat16_back_bit_by_bit(tmp_path: Path) -> None:
    values = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "d.npz", x=values)
    data = open_data(tmp_path / "d.npz", [spec("x", ml_dtypes.bfloat16, "n", 3)])
    got = np.concatenate([sample["x"] for sample in data])
    assert got.dtype == ml_dtypes.bfloat16 and (got == values).all()
    assert data.fingerprint()


def test_pb_keeps_exact_types(tmp_path: Path) -> None:
    tensor = onnx.helper.make_tensor("x", onnx.TensorProto.BFLOAT16, [1, 2], [1.5, -2.0])
    (tmp_path / "one.pb").write_bytes(tensor.SerializeToString())
    sample = next(iter(open_data(tmp_path / "one.pb", [spec("x", ml_dtypes.bfloat16, "n", 2)])))
    assert sample["x"].tolist() == [[1.5, -2.0]]
