"""docs/support.md: a row for every precision of every target, and none for others."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from harness import model

import qgraph
from qgraph.target import targets

DOCS = Path(__file__).resolve().parent.parent / "docs"
ROW = re.compile(r"\| `([\w-]+)` \| ([\w-]+) \| (.+) \| (.+) \| (.+) \|")
# Other names of targets that have rows.
SAME = {"cpu-x86": "cpu", "gpu-nvidia": "tensorrt"}


def test_every_precision_of_every_target_has_a_row():
    rows = [ROW.fullmatch(line) for line in (DOCS / "support.md").read_text().splitlines()]
    found = [(row[1], row[2]) for row in rows if row]
    assert len(found) == len(set(found))
    known = targets()
    assert set(found) == {
        (name, precision)
        for name, each in known.items()
        if name not in SAME
        for precision in each.precisions
    }
    assert all(known[name].precisions == known[other].precisions for name, other in SAME.items())


def test_targets_without_engines_were_run_nowhere():
    for row in map(ROW.fullmatch, (DOCS / "support.md").read_text().splitlines()):
        if row:
            assert (row[5] == "-") == (not targets()[row[1]].engines)


NET = """net (float[1,8,8,8] x) => (float[1,64] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, c)
    b = Relu(a)
    d = GlobalAveragePool(b)
    e = Flatten(d)
    f = MatMul(e, w)
    g = Relu(f)
    h = MatMul(g, v)
    y = Add(h, bias)
}"""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"c": (128, 8, 3, 3), "w": (128, 128), "v": (128, 64), "bias": (64,)}
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) / 8 for name, shape in shapes.items()
    }
    path = tmp_path_factory.mktemp("support") / "net.onnx"
    onnx.save(model(NET, weights), path)
    return path


@pytest.mark.parametrize(
    ("target", "precision"),
    [(t, p) for t, each in targets().items() if t not in SAME for p in each.precisions],
)
def test_every_precision_compiles_and_answers(
    target: str, precision: str, network: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """On the target's engine where one is here, else on the reference."""
    monkeypatch.setattr("qgraph.engine_choice.BUDGET_S", 0.05)
    monkeypatch.setattr("qgraph.runtime.choose._ROUNDS", 2)
    rng = np.random.default_rng(1)
    data = [{"x": rng.standard_normal((1, 8, 8, 8)).astype(np.float32)} for _ in range(8)]
    artifact = qgraph.compile(
        network,
        output=tmp_path / "o",
        target=target,
        precision=precision,
        data=data,
        settings=["weight_only.head=true"] if precision in ("int2", "int3", "int4") else [],
        force=True,
    )
    assert artifact.manifest.precision == precision
    accuracy = artifact.manifest.accuracy
    floor = {"int2": 0, "int3": 5, "int4": 10, "fp32": 60, "fp16": 40, "bf16": 30}
    (found,) = accuracy.outputs
    assert accuracy.passed and float(found["sqnr_db"]) > floor.get(precision, 15), found
