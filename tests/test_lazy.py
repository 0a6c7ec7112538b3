"""Arrays on disk whose memory is given back."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from qgraph.lazy import on_disk, release

WIDE = 1 << 20


def mapped_bytes(path):
    """Resident bytes of a file's mappings in this process."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if not line.split(maxsplit=1)[0].endswith(":"):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "array.npy"
    np.save(path, np.arange(WIDE, dtype=np.uint32))
    return path


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/self/smaps here")
def test_what_was_read_is_given_back_and_read_again(path):
    array = np.load(path, mmap_mode="r")
    view = array.view(np.uint8)[8:]
    assert array.sum(dtype=np.uint64) == WIDE * (WIDE - 1) // 2
    assert mapped_bytes(path) >= 4 * WIDE
    release(view)
    assert mapped_bytes(path) < WIDE
    assert array.sum(dtype=np.uint64) == WIDE * (WIDE - 1) // 2


def test_what_was_written_to_a_private_copy_stays(path):
    array = np.load(path, mmap_mode="c")
    array[:] = 7
    release(array)
    assert (array == 7).all()


def test_arrays_in_memory_are_left_alone():
    array = np.arange(5)
    release(array)
    assert not on_disk(array) and array.tolist() == [0, 1, 2, 3, 4]
    assert on_disk(np.frombuffer(mmap.mmap(-1, 16), np.uint8))
