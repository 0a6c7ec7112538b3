"""Writing: whole or not at all, and never over what is still being read."""

import subprocess
import sys
from pathlib import Path

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
