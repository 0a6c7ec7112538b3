import pickle

import numpy as np
import pytest
from PIL import Image

from qgraph.data import ImageOptions, open_data
from qgraph.errors import DataError, EngineError
from qgraph.runtime.backend import TensorInfo

INPUTS = [TensorInfo("x", "float32", ("n", 3, 4, 4))]
IMAGES = ImageOptions(resize=4, crop=4, mean=[0, 0, 0], std=[1, 1, 1], layout="NCHW")


def values(count=10):
    return np.random.default_rng(0).random((count, 3, 4, 4)).astype(np.float32)


def sent(data):
    return pickle.loads(pickle.dumps(data))


def same(first, second):
    pairs = list(zip(first, second, strict=True))
    assert pairs
    for one, other in pairs:
        np.testing.assert_array_equal(one["x"], other["x"])


def opened(kind, folder):
    if kind == "random":
        return open_data("random", INPUTS, samples=6, seed=3)
    if kind == "npz":
        np.savez(folder / "d.npz", x=values(), label=np.arange(10))
        return open_data(str(folder / "d.npz"), INPUTS, samples=9, labelled=True)
    if kind == "npy":
        np.save(folder / "d.npy", values())
        return open_data(folder / "d.npy", INPUTS)
    for i in range(8):
        pixels = (values()[i].transpose(1, 2, 0) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return open_data(folder, INPUTS, images=IMAGES, samples=6, seed=5)


@pytest.mark.parametrize("kind", ["npz", "npy", "images", "random"])
def test_what_lies_in_files_is_opened_again_with_the_same_choice(kind, tmp_path, monkeypatch):
    data = opened(kind, tmp_path)
    assert data.portable
    monkeypatch.chdir("/")
    same(sent(data), data)
    for side in data.split(0.3):
        same(sent(side), side)
        positions = [0, 2] if side.count > 2 else [0]
        part = side.picked(positions)
        assert part.count == len(positions)
        same(sent(part), part)
        same(part, [list(side)[i] for i in positions])


def test_a_path_is_kept_whole_and_labels_too(tmp_path, monkeypatch):
    opened("npz", tmp_path)
    monkeypatch.chdir(tmp_path)
    data = open_data("d.npz", INPUTS, labelled=True)
    note = pickle.dumps(data.picked(range(3, 6)))
    monkeypatch.chdir("/")
    again = [int(sample.labels["label"][0]) for sample in pickle.loads(note).labelled()]
    assert again == [3, 4, 5]


def test_unwanted_samples_stay_unread(tmp_path):
    data = opened("images", tmp_path)
    names = sorted(tmp_path.glob("*.png"))
    names[-1].write_bytes(b"no image")
    assert len(list(open_data(tmp_path, INPUTS, images=IMAGES).picked(range(7)))) == 7
    assert data.count == 6


def test_other_content_and_missing_files_are_named(tmp_path):
    data = opened("npz", tmp_path)
    note = pickle.dumps(data)
    np.savez(tmp_path / "d.npz", x=values() + 1, label=np.arange(10))
    with pytest.raises(DataError, match="is not what it is where the work was given out"):
        pickle.loads(note)
    (tmp_path / "d.npz").unlink()
    with pytest.raises(DataError, match=r"d\.npz on .*can't be opened by a worker.*every machine"):
        pickle.loads(note)


def test_arrays_and_functions_are_not_portable():
    for given in (values(), [{"x": value} for value in values()], lambda: iter([])):
        data = open_data(given, INPUTS)
        assert not data.portable
        with pytest.raises(DataError, match="can't be opened by another process"):
            pickle.dumps(data)


def test_errors_survive_being_sent():
    error = sent(EngineError("is broken", where="here", fix="mend it"))
    assert type(error) is EngineError and str(error) == "here: is broken; mend it"
    error.add_note("seen on Friday")
    assert sent(error).__notes__ == ["seen on Friday"]
