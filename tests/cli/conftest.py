import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from harness import model
from typer.testing import CliRunner

from qgraph.cli import app


def invoke(*args, **options):
    return CliRunner().invoke(app, [str(a) for a in args], **options)


def invoke_json(*args):
    """Run with --json; stdout must be one JSON document and nothing else."""
    result = invoke(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


# A shell's background jobs, and so perhaps these tests, ignore Ctrl-C, and their children inherit it.
LAUNCH = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "qgraph"
runpy.run_module("qgraph", run_name="__main__")
"""


def start(*args, **options):
    """Start the real program, as a user's shell does."""
    command = [sys.executable, "-c", LAUNCH, *map(str, args)]
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling times every engine for seconds, which no test here is about."""
    monkeypatch.setattr("qgraph.engine_choice.BUDGET_S", 0.1)
    monkeypatch.setattr("qgraph.runtime.choose._ROUNDS", 2)


@pytest.fixture(name="invoke")
def _invoke():
    return invoke


@pytest.fixture(name="invoke_json")
def _invoke_json():
    return invoke_json


@pytest.fixture(name="start")
def _start():
    return start


@pytest.fixture
def convnet(tmp_path: Path) -> Path:
    """Conv, BatchNorm, Relu, pool, Gemm: everything that int8 on a CPU covers."""
    rng = np.random.default_rng(0)
    proto = model(
        """convnet (float[n, 3, 8, 8] image) => (float[n, 5] logits) {
          c = Conv<pads = [1, 1, 1, 1]>(image, w, b)
          n_ = BatchNormalization(c, scale, shift, mean, variance)
          r = Relu(n_)
          c2 = Conv<pads = [1, 1, 1, 1]>(r, w2, b)
          r2 = Relu(c2)
          s = Add(r, r2)
          p = GlobalAveragePool(s)
          f = Flatten(p)
          logits = Gemm<transB = 1>(f, w3, b3)
        }""",
        {
            "w": (rng.standard_normal((8, 3, 3, 3)) / 5).astype(np.float32),
            "w2": (rng.standard_normal((8, 8, 3, 3)) / 8).astype(np.float32),
            "b": rng.standard_normal(8).astype(np.float32) / 4,
            "scale": rng.uniform(0.5, 1.5, 8).astype(np.float32),
            "shift": rng.standard_normal(8).astype(np.float32) / 4,
            "mean": rng.standard_normal(8).astype(np.float32) / 4,
            "variance": rng.uniform(0.5, 1.5, 8).astype(np.float32),
            "w3": rng.standard_normal((5, 8)).astype(np.float32),
            "b3": rng.standard_normal(5).astype(np.float32),
        },
    )
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type.lower()}_{index}"
    onnx.save(proto, tmp_path / "convnet.onnx")
    return tmp_path / "convnet.onnx"


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "samples.npz", image=rng.standard_normal((20, 3, 8, 8)).astype(np.float32))
    return tmp_path / "samples.npz"


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
