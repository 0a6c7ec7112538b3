import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qgraph.cache import Cache, cache_folder, open_cache


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz"))


def test_what_is_put_comes_back(tmp_path):
    cache = Cache(tmp_path / "new" / "folder")
    assert cache.get("ranges", "k") is None
    arrays = {"a/b": np.arange(5), "empty": np.zeros((0, 2)), "n": np.asarray(np.inf)}
    assert cache.put("ranges", "k", {"names": ["x\n"]}, arrays) is None
    found = cache.get("ranges", "k")
    assert found is not None and found.meta == {"names": ["x\n"]}
    assert found.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)
    assert cache.get("ranges", "K") is None and cache.get("other", "k") is None
    cache.put("ranges", "k", {"v": 2}, {})
    assert cache.get("ranges", "k").meta == {"v": 2}
    cache.drop("ranges", "k")
    cache.drop("ranges", "k")
    assert cache.get("ranges", "k") is None and not entries(cache.folder)


def test_damaged_entries_are_misses_and_rewritten(tmp_path):
    cache = Cache(tmp_path)
    cache.put("ranges", "k", {}, {"a": np.arange(1000.0)})
    (path,) = entries(tmp_path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0x40
    other = Cache(tmp_path / "other")
    other.put("ranges", "another key", {}, {"a": np.arange(1000.0)})
    for content in (b"", b"PK", whole[: len(whole) // 2], bytes(flipped), b"x" * 5000,
                    entries(tmp_path / "other")[0].read_bytes()):  # fmt: skip
        path.write_bytes(content)
        assert cache.get("ranges", "k") is None
        assert not path.exists()
        cache.put("ranges", "k", {}, {"a": np.arange(1000.0)})
        assert cache.get("ranges", "k") is not None


def test_pickles_are_neither_written_nor_read(tmp_path):
    cache = Cache(tmp_path)
    with pytest.raises(TypeError, match="objects"):
        cache.put("ranges", "k", {}, {"a": np.array([{}], object)})
    cache.put("ranges", "k", {}, {"a": np.zeros(1)})
    (path,) = entries(tmp_path)
    with np.load(path) as archive:
        members = {name: archive[name] for name in archive.files}
    np.savez(path, **(members | {"a_a": np.array([{"code": 1}], object)}))
    assert cache.get("ranges", "k") is None


def test_the_least_recently_used_go_first(tmp_path):
    cache = Cache(tmp_path, limit=27_000)
    for index in range(3):  # 8 kB each
        cache.put("ranges", f"k{index}", {}, {"a": np.full(1000, index, np.float64)})
        os.utime(entries_of(cache, f"k{index}"), (1000 + index, 1000 + index))
    assert cache.get("ranges", "k0") is not None  # which makes k1 the oldest
    cache.put("ranges", "k3", {}, {"a": np.zeros(1000)})
    kept = [k for k in ("k0", "k1", "k2", "k3") if cache.get("ranges", k) is not None]
    assert kept == ["k0", "k2", "k3"]
    cache.put("ranges", "big", {}, {"a": np.zeros(10_000)})
    assert [p for p in entries(tmp_path)] == [entries_of(cache, "big")]


def entries_of(cache: Cache, key: str) -> Path:
    return cache._path("ranges", key)


def test_leftovers_of_killed_writers_go_after_a_day(tmp_path):
    old, new = tmp_path / ".a.tmp", tmp_path / ".b.tmp"
    for path, age in ((old, 2 * 86400), (new, 60)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    Cache(tmp_path).put("ranges", "k", {}, {})
    assert new.exists() and not old.exists()


def test_a_folder_that_cant_be_written_is_a_reason_and_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file")
    assert cache.put("ranges", "k", {}, {})
    assert cache.get("ranges", "k") is None


WRITER = """
import sys, numpy as np
from pathlib import Path
from qgraph.cache import Cache
cache = Cache(Path(sys.argv[1]))
value = int(sys.argv[2])
for _ in range(60):
    cache.put("ranges", "k", {"v": value}, {"a": np.full(20_000, value)})
    found = cache.get("ranges", "k")
    assert found is not None and (found.arrays["a"] == found.meta["v"]).all(), found
"""


def test_writers_at_the_same_time_never_see_half_an_entry(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    running = [subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE) for i in range(2)]
    for process in running:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error.decode()
    assert len(list(tmp_path.iterdir())) == 1


def test_where_the_cache_lies(tmp_path, monkeypatch):
    for value, want in [("off", None), (" OFF ", None), (str(tmp_path), tmp_path)]:
        monkeypatch.setenv("QGRAPH_CACHE", value)
        assert cache_folder() == want
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QGRAPH_CACHE", "here")
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("QGRAPH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "qgraph"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # counts as none, says the specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "home" / ".cache" / "qgraph"
    monkeypatch.setenv("QGRAPH_CACHE", "off")
    assert open_cache() is None


def test_meta_is_json(tmp_path):
    with pytest.raises(TypeError):
        Cache(tmp_path).put("ranges", "k", {"x": object()}, {})
    assert not list(tmp_path.iterdir())
