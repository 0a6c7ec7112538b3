"""benchmarks/cuda_models without a GPU: a small model through every step of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.cuda_models import mobilenet
from benchmarks.cuda_models.plain import error
from benchmarks.cuda_models.tables import best, markdown, missed

ROOT = Path(__file__).resolve().parent.parent


def run(*words):
    command = [sys.executable, "-m", "benchmarks.cuda_models", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


def test_a_model_goes_through_every_step(tmp_path):
    done = run(tmp_path, "--provider", "cpu", "--quick", "--models", "decoder", "--batches", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert "failures" not in report
    found = report["models"]["135M decoder, one step"]
    assert [cell["batch"] for cell in found["ours"]] == [1]
    cells = found["ours"] + found["plain"]["fp16, NCHW"]
    assert all(0 < (c.get("error") or c["kernels_error"]) < 1e-2 for c in cells)
    assert found["plain"]["fp32, NCHW"][0]["kernels_error"] < 1e-6
    assert found["int8"]["precision"] == "int8-weights" and "instead" in found["int8"]["told_first"]
    assert "| ours |" in (tmp_path / "tables.md").read_text()


def test_a_model_that_does_not_exist():
    done = run("--models", "resnet")
    assert done.returncode == 2 and "no model resnet" in done.stderr


def test_mobilenet_has_the_paper_s_size_and_numbers_that_stay_in_range():
    model = mobilenet.build(size=64)
    onnx.checker.check_model(model, full_check=True)
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer}
    moments = [
        n for node in model.graph.node if node.op_type.startswith("Batch") for n in node.input[3:]
    ]
    learned = sum(sizes.values()) - sum(sizes[name] for name in moments) - 2
    assert learned == 3_504_872 - 1000  # the paper's network; its head has a bias
    from qgraph.runtime import backend

    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    with backend("onnxruntime-cpu").open(model.SerializeToString()) as session:
        logits = session.run({"input": x})["logits"]
    assert np.isfinite(logits).all() and 0.1 < np.abs(logits).mean() < 100


def cell(batch, **values):
    return {"batch": batch, **values}


def report(ours, graph=1.0, plain=2.5):
    found = {
        "plain": {
            "fp16, NCHW": [
                cell(1, kernels_us=plain, kernels_error=0.01, graph_us=1.5, graph_error=0)
            ],
            "fp16, NHWC": [cell(1, kernels_us=3.0, kernels_error=0, graph_us=graph, graph_error=0)],
        },
        "ours": [cell(1, us=ours, error=0.01, numpy_us=9.0, numpy_error=0.01, candidate="x")],
        "int8": {
            "same_file": True,
            "precision": "fp16",
            "int8_us": 1.0,
            "fp16_us": 1.0,
            "nodes": {},
        },
    }
    return {"device": "d", "onnxruntime": "1", "date": "today", "models": {"net": found}}


def test_the_best_of_all_ways_is_what_ours_is_held_to():
    found = report(1.0)["models"]["net"]
    assert best(found, 1) == ("fp16, NHWC, graph", 1.0) and best(found, 8) is None
    assert missed(report(1.02)) == []
    assert missed(report(1.04)) == ["net, batch 1: 1.040 of the time of fp16, NHWC, graph"]
    assert missed(report(1.0, plain=1.9)) == ["net, batch 1: only 1.90 times as fast as plain fp16"]


def test_wrong_numbers_and_a_slow_int8_are_missed():
    wrong = report(1.0)
    wrong["models"]["net"]["ours"][0]["numpy_error"] = 0.5
    wrong["models"]["net"]["plain"]["fp16, NCHW"][0]["kernels_error"] = 0.5
    wrong["models"]["net"]["int8"] |= {"same_file": False, "int8_us": 2.0}
    assert missed(wrong) == [
        "net, fp16, NCHW, kernels, batch 1: wrong numbers",
        "net, batch 1: wrong numbers",
        "net: int8 is slower than fp16",
    ]
    assert "- missed: net: int8 is slower than fp16" in markdown(wrong)


@pytest.mark.parametrize(("got", "want"), [([[2.0], [1.0]], 1.0), ([[1.0]], 0.0)])
def test_errors_are_of_the_rows_that_both_have(got, want):
    assert error(np.array(got), np.ones((2, 1))) == pytest.approx(want / np.sqrt(len(got)))
