"""Writing: whole or not at all, and never over what is still being read."""

import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnxfiles import linear

from qgraph import onnx_io
from qgraph.errors import ArtifactError, ModelError

# -- writing -----------------------------------------------------------------------------------


def test_saving_into_nothing(tmp_path: Path) -> None:
    graph = onnx_io.load(linear())
    with pytest.raises(ArtifactError, match="folder does not exist"):
        onnx_io.save(graph, tmp_path / "absent" / "m.onnx")
    with pytest.raises(ArtifactError, match="is a folder"):
        onnx_io.save(graph, tmp_path)


CHILD = """
import resource, signal, sys
import numpy as np, onnx
from onnx import numpy_helper
from qgraph import onnx_io
from qgraph.errors import QGraphError
graph = onnx_io.load({source!r})
graph.constant("bulk", np.ones(200_000, np.float32))
{before}
try:
    onnx_io.save(graph, {target!r}, external={external})
except QGraphError as error:
    print(type(error).__name__, error)
"""
FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
INTERRUPT = """
import os, threading, time
real = os.replace
def replace(*args):
    # Whoever started the tests in the background made them ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
    real(*args)
os.replace = replace
"""


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("trouble", ["full", "interrupt"])
def test_trouble_while_writing_leaves_the_old_file(
    trouble: str, external: bool, tmp_path: Path
) -> None:
    target = tmp_path / "m.onnx"
    onnx.save(linear(), target)
    old = target.read_bytes()
    code = CHILD.format(
        source=str(target),
        target=str(target),
        external=external,
        before=FULL if trouble == "full" else INTERRUPT,
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120
    )
    if trouble == "full":
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("ArtifactError") and "can't write" in done.stdout
        assert done.stdout.count("\n") == 1
    else:
        assert "KeyboardInterrupt" in done.stderr
    assert target.read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_model_too_large_for_one_message_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_io, "EXTERNAL_ABOVE_BYTES", 10)
    with pytest.raises(ModelError, match="too large"):
        onnx_io.to_proto(onnx_io.load(linear()))


# -- constants that are made when they are written ---------------------------------------------


@pytest.mark.parametrize("external", [True, False])
def test_lazy_constants_are_made_one_at_a_time(external: bool, tmp_path: Path) -> None:
    graph = onnx_io.load(linear())
    first = next(graph.nodes())
    alive, most, count, shape = 0, 0, 20, (100, 1001)
    dtypes = [np.dtype(d) for d in (np.int8, ml_dtypes.int4, ml_dtypes.uint2, np.float32)]

    def array(index: int) -> np.ndarray:
        dtype = dtypes[index % len(dtypes)]
        low, high = (0, 4) if dtype == ml_dtypes.uint2 else (-8, 8)
        return np.random.default_rng(index).integers(low, high, shape).astype(dtype)

    def read(index: int) -> np.ndarray:
        nonlocal alive, most
        made = array(index)
        alive, most = alive + 1, max(most, alive + 1)

        def gone() -> None:
            nonlocal alive
            alive -= 1

        weakref.finalize(made, gone)
        return made

    for index in range(count):
        dtype = dtypes[index % len(dtypes)]
        value = graph.lazy_constant(f"bulk{index}", dtype, shape, partial(read, index))
        assert graph.shape(value) == shape
        graph.insert("Shape", [value], before=first)
    assert onnx_io.weight_bytes(graph) > count * 100 * 1001 // 4 and most == 0
    onnx_io.save(graph, tmp_path / "m.onnx", external=external)
    assert (alive, most) == (0, 1)
    back = onnx_io.load(tmp_path / "m.onnx")
    again = {value.name: back.array(value) for value in back.initializers}
    for index in range(count):
        np.testing.assert_array_equal(again[f"bulk{index}"], array(index))


def test_a_lazy_constant_that_breaks_its_word(tmp_path: Path) -> None:
    graph = onnx_io.load(linear())
    value = graph.lazy_constant("bulk", np.dtype(np.int8), (2, 3), lambda: np.zeros(6, np.int8))
    graph.insert("Shape", [value], before=next(graph.nodes()))
    with pytest.raises(ModelError, match=r"bulk became int8 \[6\], not int8 \[2, 3\]"):
        onnx_io.save(graph, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
