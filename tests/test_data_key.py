import numpy as np
import pytest

from qgraph.data import ImageOptions, open_data
from qgraph.data.inputs import InputSpec

INPUT = [InputSpec("x", np.dtype(np.float32), ("n", 3))]
IMAGE = [InputSpec("x", np.dtype(np.float32), ("n", 3, 4, 4))]


def values(count=10, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3)).astype(np.float32)


def key(source, inputs=INPUT, **options):
    return open_data(source, inputs, **options).key()


def test_the_key_follows_the_content_and_not_the_place(tmp_path):
    (tmp_path / "b").mkdir()
    np.savez(tmp_path / "a.npz", x=values())
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "b" / "a.npz").write_bytes(content)
    first = key(tmp_path / "a.npz")
    assert first == key(tmp_path / "b" / "a.npz") and len(first) == 32
    np.savez(tmp_path / "a.npz", x=values(seed=1))
    assert key(tmp_path / "a.npz") != first
    assert key({"x": values()}) == key({"x": values()}) != key({"x": values(seed=1)})
    rows = [{"x": row} for row in values()]
    assert key(rows) == key(tuple(rows)) != key(rows[1:])
    assert key("random") == key("random") != key("random", seed=1)


def test_the_key_follows_the_choice_of_samples():
    data = open_data({"x": values()}, INPUT)
    left, right = data.split(0.3)
    keys = {data.key(), left.key(), right.key(), key({"x": values()}, samples=5)}
    assert len(keys) == 4
    assert left.key() == open_data({"x": values()}, INPUT).split(0.3)[0].key()


def test_what_only_running_code_can_tell_has_none():
    def function():
        yield {"x": values()[0]}

    class Loader:
        def __iter__(self):
            return function()

    for source in (function, function(), Loader()):
        data = open_data(source, INPUT)
        assert data.key() is None
        list(data)
        assert data.key() is None and data.fingerprint() is not None


def test_every_byte_counts_however_large_the_files_are(tmp_path, monkeypatch):
    # Where the fingerprint samples blocks; the sizes are scaled down.
    monkeypatch.setattr("qgraph.data.digest._FULL_BYTES", 1 << 10)
    monkeypatch.setattr("qgraph.data.digest._BLOCK", 16)
    monkeypatch.setattr("qgraph.data.digest._BLOCKS", 4)
    (tmp_path / "many").mkdir()
    array = values(1000)
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "many" / "0.npy", array)
    before = [(open_data(p, INPUT).key(), open_data(p, INPUT).fingerprint())
              for p in (tmp_path / "a.npy", tmp_path / "many")]  # fmt: skip
    array[617, 1] += 1
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "many" / "0.npy", array)
    for (old, sampled), place in zip(before, (tmp_path / "a.npy", tmp_path / "many"), strict=True):
        assert key(place) != old
        assert open_data(place, INPUT).fingerprint() == sampled  # or this tests nothing


def test_preprocessing_of_images_counts(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="images need Pillow")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    image.fromarray(pixels).save(tmp_path / "a.png")
    first = key(tmp_path, IMAGE, images=ImageOptions())
    assert first == key(tmp_path, IMAGE, images=ImageOptions())
    assert first != key(tmp_path, IMAGE, images=ImageOptions(mean=(0.5,)))
