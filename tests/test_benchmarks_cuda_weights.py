"""benchmarks/cuda_weights without a GPU: every step of it, on tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cuda_weights.tables import cost_json, crossing
from qgraph.costs.table import CostTable

ROOT = Path(__file__).resolve().parent.parent


def test_every_part_runs_and_writes_what_it_measured(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cuda_weights", str(tmp_path)]
        + ["--provider", "cpu", "--quick"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert "failures" not in report and report["onnxruntime"]
    assert len(report["errors"]) == 10 and max(report["errors"].values()) < 4e-3
    for steps in report["steps"].values():
        assert set(steps) == {"fp16", "int4", "int4-cutlass"}
        assert all(step["plain_us"] > 0 for each in steps.values() for step in each)
    text = (tmp_path / "costs.json").read_text()
    table = CostTable.model_validate_json(text)
    assert cost_json(table) == text
    assert table.ratio("int4", "fp16", 64, 96, 1, 128) is not None
    assert "| 64 x 96 | int8, block 128 |" in (tmp_path / "tables.md").read_text()


def test_a_part_that_does_not_exist(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cuda_weights", str(tmp_path), "--parts", "step"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "no part step" in done.stderr


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ((0.5, 2.0, 4.0), 2.0),
        ((0.25, 0.5, 1.0), 16.0),
        ((1.5, 2.0, 2.0), 1.0),
        ((0.5, 0.5, 0.9), float("inf")),
    ],
)
def test_where_a_ratio_reaches_1(ratios, expected):
    assert crossing((1, 4, 16), ratios) == pytest.approx(expected)
