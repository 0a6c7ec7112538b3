import ml_dtypes
import numpy as np
import pytest
from runtime_models import affine, small_cnn

from qgraph.errors import DataError
from qgraph.runtime import backend
from qgraph.runtime.backend import TensorInfo
from qgraph.runtime.feeds import random_feeds

KINDS = (
    *("float16", "bfloat16", "float8e5m2", "float32", "float64", "bool", "string"),
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_same_state_same_feeds() -> None:
    infos = [TensorInfo(kind, kind, ("N", 5)) for kind in KINDS]
    first, second, other = (random_feeds(infos, rng(seed)) for seed in (1, 1, 2))
    assert list(first) == list(KINDS)
    for kind in KINDS:
        np.testing.assert_array_equal(first[kind], second[kind])
    assert not np.array_equal(first["float32"], other["float32"])


def test_axes() -> None:
    infos = [
        TensorInfo("ids", "int64", ("batch", "length")),
        TensorInfo("state", "float32", (2, "batch", None)),
        TensorInfo("scalar", "int64", ()),
    ]
    shapes = {name: array.shape for name, array in random_feeds(infos, rng()).items()}
    assert shapes == {"ids": (1, 64), "state": (2, 1, 64), "scalar": ()}
    sizes = {"batch": 4, "length": 7, "state:2": 128}
    shapes = {name: array.shape for name, array in random_feeds(infos, rng(), sizes).items()}
    assert shapes == {"ids": (4, 7), "state": (2, 4, 128), "scalar": ()}


def test_one_input_can_differ_from_its_symbol() -> None:
    infos = [TensorInfo("a", "float32", (1, "n")), TensorInfo("b", "float32", (1, "n"))]
    feeds = random_feeds(infos, rng(), {"n": 3, "b:1": 5})
    assert (feeds["a"].shape, feeds["b"].shape) == ((1, 3), (1, 5))


def test_values() -> None:
    infos = [TensorInfo(kind, kind, (10_000,)) for kind in KINDS]
    feeds = random_feeds([*infos, TensorInfo("attention_mask", "int64", (50,))], rng())
    assert set(feeds["int64"]) == {0, 1} and feeds["int64"].dtype == np.int64
    assert (feeds["uint8"].min(), feeds["uint8"].max()) == (0, 255)
    assert set(feeds["bool"]) == {True, False} and feeds["bool"].dtype == bool
    assert feeds["bfloat16"].dtype == ml_dtypes.bfloat16
    assert 0.8 < feeds["float32"].std() < 1.2
    assert all(isinstance(word, str) for word in feeds["string"])
    assert set(feeds["attention_mask"]) == {1}


@pytest.mark.parametrize("make", [affine, small_cnn])
def test_sessions_accept_them(make: object) -> None:
    model = make()  # type: ignore[operator]
    with backend("onnxruntime-cpu").open(model.SerializeToString()) as session:
        got = session.run(random_feeds(session.inputs, rng(), {"N": 3}))
    assert all(len(value) == 3 for value in got.values())


@pytest.mark.parametrize(
    ("info", "sizes", "message"),
    [
        (TensorInfo("x", "float32", (1 << 20, 1 << 20)), {}, "input 'x': .*more than"),
        (TensorInfo("x", "float32", ("n",)), {"n": 0}, "n=0 is not positive"),
        (TensorInfo("x", "seq(float32)"), {}, r"seq\(float32\)"),
        (TensorInfo("x", "int4", (2,)), {}, "input 'x': no feeds can be made up for int4"),
    ],
)
def test_refusals(info: TensorInfo, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        random_feeds([info], rng(), sizes)
