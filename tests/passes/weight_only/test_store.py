import dataclasses

import numpy as np
import pytest

from qgraph.encoding import Encoding, dequantize
from qgraph.facts import QuantizedWeight
from qgraph.lazy import on_disk
from qgraph.passes.weight_only import store as module
from qgraph.passes.weight_only.solve import Settings, Spec, solve_group
from qgraph.passes.weight_only.store import Store


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QGRAPH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_LEAST_BYTES", 512)
    return tmp_path / "cache"


def solutions(dtype="uint4", count=2, rows=32):
    weights = [np.random.default_rng(n).standard_normal((rows, 24)) for n in range(count)]
    spec = Spec(dtype, dtype.startswith("int"), axis=0, block=16)
    return solve_group([w.astype(np.float32) for w in weights], None, Settings("rtn", spec))


def same(a, b):
    assert a.weight.codes.dtype == b.weight.codes.dtype
    np.testing.assert_array_equal(a.weight.codes, b.weight.codes)
    np.testing.assert_array_equal(a.effective(), b.effective())
    for field in dataclasses.fields(a):
        if field.name not in ("weight", "scale"):
            assert getattr(a, field.name) == getattr(b, field.name)


@pytest.mark.parametrize("dtype", ["uint4", "int4", "uint2", "int3", "uint8", "int8"])
@pytest.mark.parametrize("rows", [16, 32], ids=["small", "mapped"])
def test_another_run_finds_what_was_put(dtype, rows):
    before = solutions(dtype, rows=rows)
    kept = Store("key").put(3, before)
    again = Store("key").get(3)
    assert again is not None
    for a, b, c in zip(before, kept, again, strict=True):
        same(a, b)
        same(a, c)
        for found in (b, c):
            encoding = found.weight.encoding
            for array in (found.weight.codes, encoding.scale, encoding.zero_point):
                assert on_disk(array) == (rows == 32)
    assert Store("other").get(3) is None and Store("key").get(4) is None


def test_codes_stay_readable_when_the_folder_is_gone(cache):
    store = Store("key")
    before = solutions()
    kept = store.put(0, before)
    store.close(finished=True)
    assert not list(cache.iterdir())
    same(before[0], kept[0])


def test_only_a_run_that_others_find_keeps_its_folder(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    unnamed = Store(None)
    unnamed.put(0, solutions())
    unnamed.close(finished=False)
    assert not cache.exists()
    named = Store("key")
    named.put(0, solutions())
    named.close(finished=False)
    assert Store("key").get(0) is not None


@pytest.mark.parametrize("name", ["0.npz", "0-1.npy"])
def test_a_damaged_file_is_a_miss(cache, name):
    Store("key").put(0, solutions())
    (path,) = cache.glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:100])
    assert Store("key").get(0) is None


def test_a_file_of_another_kind_is_a_miss(cache):
    Store("key").put(0, solutions())
    (path,) = cache.glob("*/0-1.npy")
    np.save(path, np.zeros((32, 24), np.uint8))
    assert Store("key").get(0) is None


def test_scales_of_input_channels_are_kept():
    (before,) = solutions(count=1)
    before = dataclasses.replace(before, scale=np.linspace(1, 2, 32, dtype=np.float32))
    Store("key").put(0, [before])
    (again,) = Store("key").get(0)
    np.testing.assert_array_equal(again.scale, before.scale)


def test_results_of_other_kinds_are_left_in_memory():
    weight = np.ones((32, 24), np.float32)
    (found,) = solve_group([weight], None, Settings("nf4", Spec()))
    (kept,) = Store("key").put(0, [found])
    assert kept is found and Store("key").get(0) is None


def test_the_encoding_of_a_mapped_weight_is_its_own():
    encoding = Encoding("uint8", np.float32([[0.5]]), np.int64([[3]]), (0, 1))
    codes = np.arange(1024, dtype=np.uint8).reshape(-1, 1)
    (before,) = solutions(count=1)
    (kept,) = Store("k").put(
        0, [dataclasses.replace(before, weight=QuantizedWeight(codes, encoding, 0.0))]
    )
    np.testing.assert_array_equal(
        dequantize(kept.weight.codes, encoding), 0.5 * (codes.astype(int) - 3)
    )
