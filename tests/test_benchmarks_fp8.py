"""benchmarks/fp8 without a GPU: every step of it, on tiny sizes, and the model that a GPU would get."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from float8 import operators

from benchmarks.cuda_weights.timing import Device
from benchmarks.fp8 import encoder
from qgraph.costs import load_costs
from qgraph.costs.table import CostTable

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.fp8", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


def test_every_part_runs_and_writes_what_it_measured(tmp_path):
    done = run(str(tmp_path), "--provider", "cpu", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert "failures" not in report and report["graph"] == "not tried: no GPU"
    assert report["kernels"].pop("casts rounded otherwise") == 0
    assert len(report["kernels"]) == 4 and max(report["kernels"].values()) < 4e-3
    variants = {each["variant"]: each for each in report["encoder"]}
    assert {name: each["fp8"] for name, each in variants.items()} == {
        "fp16": 0,
        "fp8 all": 6 * encoder.TINY.layers,
        "fp8 hidden": 2 * encoder.TINY.layers,
    }
    assert variants["fp16"]["error"] < 2e-3 < variants["fp8 all"]["error"] < 0.1
    assert all(us > 0 for each in variants.values() for us in each["plain_us"].values())
    assert variants["fp8 all"]["profile"]["Cast, CPU"] > 0
    assert set(report["best"]) == {"2 x 8", "1 x 16"}
    table = CostTable.model_validate_json((tmp_path / "costs.json").read_text())
    assert table.ratio("fp8", "fp16", 64, 96, 8, 0) is not None
    assert "| fp8, QuantizeLinear in front |" in (tmp_path / "tables.md").read_text()


def test_a_part_that_does_not_exist(tmp_path):
    done = run(str(tmp_path), "--parts", "product")
    assert done.returncode == 2 and "no part product" in done.stderr


@pytest.mark.parametrize(("choice", "count"), [("all", 6), ("hidden", 2)])
def test_the_encoder_that_a_gpu_gets(choice, count, tmp_path):
    config = encoder.TINY
    data = [encoder.inputs(config, 2, 8, seed) for seed in (1, 2)]
    path, leave = tmp_path / "m.onnx", encoder.CHOICES[choice]
    device = Device("cuda")  # decides what is written; nothing runs on it
    _, found = encoder.write(
        encoder.build(config, "separate"), "fp8", path, device, data, leave=leave
    )
    model = onnx.load(path)
    ops = operators(model)
    assert ops["GemmFloat8"] == found == count * config.layers
    assert ops["MultiHeadAttention"] == config.layers
    # Two for the graph's input and output; in a block one for q, k and v, one for each other.
    assert ops["Cast"] == 2 + {6: 4, 2: 2}[count] * config.layers
    assert ops["Mul"] == 0
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    attention = next(n for n in model.graph.node if n.op_type == "MultiHeadAttention")
    assert kinds[attention.input[3]] == onnx.TensorProto.FLOAT16


def test_the_shipped_table_is_one():
    table = load_costs("h100-fp8")
    slow = table.ratio("fp8", "fp16", 4096, 4096, 4096, 0)
    fast = table.ratio("fp8", "fp16", 4096, 14336, 4096, 0)
    assert slow is not None and fast is not None and fast.ratio < 1 < slow.ratio
