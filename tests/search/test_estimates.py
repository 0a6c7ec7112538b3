"""Searches for targets whose engine does not run here, and times from other machines."""

import json

import numpy as np
import onnx
import pytest
from harness import model
from planted import CNN

from qgraph.errors import DataError, EngineError, UsageError
from qgraph.runtime import backend
from qgraph.search import compile_within
from qgraph.search.costs_file import read_costs

pytestmark = pytest.mark.skipif(
    backend("onnxruntime-cuda").unavailable() is None, reason="a GPU is here"
)

# Weights rounded to nearest at once.
PLAIN = [f"weight_only.{each}" for each in ("method=rtn", "scaling=false", "clip=none")]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two products whose weights take longer to read than kernels take to start."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(0, 0.02, size=(2048, 2048)).astype(np.float32) for i in (0, 1)}
    proto = model(
        """agraph (float[N, 2048] x) => (float[N, 2048] y) {
            a = MatMul (x, w0)
            b = Tanh (a)
            c = MatMul (b, w1)
            y = Tanh (c)
        }""",
        weights,
    )
    path = tmp_path_factory.mktemp("wide") / "wide.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module")
def rows():
    return {"x": np.random.default_rng(1).normal(size=(60, 2048)).astype(np.float32)}


def whole(artifact):
    return {row["name"]: row for row in artifact.read_json("search.json")["whole"]}


def test_a_search_for_cuda_without_a_gpu(wide, rows, tmp_path, invoke):
    np.savez(tmp_path / "d.npz", **rows)
    result = invoke(
        "compile", wide, "--target", "cuda", "--data", tmp_path / "d.npz", "--max-drop", "100%",
        "--max-latency", "1ms", "--recipe", "fast", *(word for each in PLAIN for word in ("--set", each)),
        "-o", tmp_path / "a",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    (line,) = [each for each in result.stdout.splitlines() if each.startswith("against float")]
    assert "about" in line and "estimated, not measured" in line
    found = json.loads((tmp_path / "a" / "manifest.json").read_text())
    promise = found["promise"]
    assert promise["holds"] and promise["latency_estimated"]
    assert promise["relative_time"] < 1 and "estimated, not measured" in promise["reason"]
    assert any("NVIDIA H100" in note for note in promise["notes"])
    assert any("held to an estimate" in note for note in promise["notes"])
    assert found["engine"] is None and "estimated" in found["not_timed"]
    assert not any("int8 is slow" in line for line in found["warnings"])
    searched = json.loads((tmp_path / "a" / "search.json").read_text())
    times = {row["name"]: row.get("p50_ms") for row in searched["whole"]}
    assert all(row["estimated"] for row in searched["whole"] if "p50_ms" in row)
    # What docs/benchmarks/cuda.md says: int4 pays by one row, and integers do not.
    assert times["int4"] < times["fp16"] < times["fp32"] < times["int8"]
    assert found["precision"] == "int4" and not (tmp_path / "a" / "costs.json").exists()


def test_estimated_latency_that_is_too_long_breaks_the_promise(wide, rows, tmp_path):
    from qgraph.errors import AccuracyError

    with pytest.raises(AccuracyError, match="more than 0.0001 ms"):
        compile_within(wide, data=rows, target="cuda", max_drop="60%", max_latency="0.1us",
                       recipe="fast", settings=PLAIN, output=tmp_path / "a")  # fmt: skip


def test_operators_of_the_targets_own_do_not_stop_a_search(searched, tmp_path):
    artifact = compile_within(
        CNN.with_name("digits_vit.onnx"), data=searched, metric="top1", max_drop="5%",
        target="cuda", recipe="fast", output=tmp_path / "a",
    )  # fmt: skip
    assert artifact.manifest.promise.holds
    assert {"fp16", "fp8", "int4"} <= {n for n, row in whole(artifact).items() if "p50_ms" in row}


def test_times_of_the_front_are_marked(wide, rows, tmp_path, invoke):
    np.savez(tmp_path / "d.npz", **rows)
    result = invoke(
        "compile", wide, "--target", "cuda", "--data", tmp_path / "d.npz", "--max-drop", "100%",
        "--recipe", "fast", *(word for each in PLAIN for word in ("--set", each)), "--pareto",
        "-o", tmp_path / "a",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "times are estimated" in next(x for x in result.stdout.splitlines() if "Front" in x)
    front = json.loads((tmp_path / "a" / "search.json").read_text())["front"]
    assert front and all(row["estimated"] for row in front)
    assert (tmp_path / "a" / "pareto.csv").read_text().splitlines()[1].endswith(",True")


def test_a_device_file_stands_in_for_one_that_ships(searched, tmp_path):
    (tmp_path / "npu.toml").write_text(
        'name = "an NPU"\nbandwidth_gb_s = 0.01\n[tflops]\nfp32 = 0.001\nint8 = 0.02\n'
        '[backends.vendor]\nruns = { fp32 = "fp32", int8 = "int8" }\ncodes = ["int8"]\n'
        'fused = ["Relu"]\nefficiency = 0.5\nlaunch_us = 1\n'
    )
    given = {"data": searched, "metric": "top1", "max_drop": "2%", "recipe": "fast"}
    artifact = compile_within(
        CNN, target="npu", device=str(tmp_path / "npu.toml"), output=tmp_path / "a", **given
    )
    promise = artifact.manifest.promise
    assert promise.holds and promise.latency_estimated and promise.engine == "vendor f32"
    assert artifact.manifest.precision == "int8" and promise.relative_time < 0.8
    with pytest.raises(EngineError, match="--device FILE.toml"):
        compile_within(CNN, target="npu", output=tmp_path / "b", **given)
    with pytest.raises(UsageError, match="says nothing of tensorrt"):
        compile_within(CNN, target="tensorrt", device=str(tmp_path / "npu.toml"),
                       output=tmp_path / "b", **given)  # fmt: skip
    with pytest.raises(UsageError, match="times are measured"):
        compile_within(CNN, device="h100", output=tmp_path / "b", **given)
    with pytest.raises(UsageError, match="memory is measured"):
        compile_within(CNN, target="cuda", optimize="memory", output=tmp_path / "b", **given)


# -- costs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(searched, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    return compile_within(CNN, data=searched, metric="top1", max_drop="2%", recipe="fast",
                          output=folder / "a")  # fmt: skip


def test_measured_units_are_exported_and_taken_from_there(
    measured, searched, tmp_path, monkeypatch
):
    path = measured.path / "costs.json"
    costs = read_costs(path)
    assert costs.backend in ("onnxruntime-cpu", "openvino") and costs.processor
    assert all(row.ms > 0 and row.inputs for row in costs.units)
    units = {row["name"] for row in measured.read_json("search.json")["units"]}
    assert {row.unit for row in costs.units} <= units
    content = json.loads(path.read_text())
    for row in content["units"]:
        row["ms"] = 123.0
    (tmp_path / "c.json").write_text(json.dumps(content))
    monkeypatch.setenv("QGRAPH_CACHE", "off")
    again = compile_within(CNN, data=searched, metric="top1", max_drop="2%", recipe="fast",
                           costs=tmp_path / "c.json", output=tmp_path / "a")  # fmt: skip
    row = again.read_json("search.json")["units"][0]
    taken = read_costs(again.path / "costs.json").engine == costs.engine
    warned = any("units were timed instead" in line for line in again.manifest.warnings)
    # Two engines may be level: the file counts where the fastest is the one that it is of.
    assert warned is not taken
    assert (row["float_ms"] == row["int8_ms"] == 123.0) is taken


def test_measured_units_correct_estimates(measured, searched, tmp_path):
    """Keys say what a unit is, whatever engine it ran in: float ones that take long change the choice."""
    content = json.loads((measured.path / "costs.json").read_text())
    given = {"data": searched, "metric": "top1", "max_drop": "2%", "recipe": "fast"}
    plain = compile_within(CNN, target="tensorrt", output=tmp_path / "a", **given)
    assert plain.manifest.precision == "fp32", "kernels this small are all start"
    content["engine"] = "tensorrt f32"
    content["units"] = [
        {**row, "ms": 1.0} for row in content["units"] if "QuantizeLinear" not in row["key"]
    ]
    (tmp_path / "c.json").write_text(json.dumps(content))
    artifact = compile_within(
        CNN, target="tensorrt", costs=tmp_path / "c.json", output=tmp_path / "b", **given
    )
    promise = artifact.manifest.promise
    assert artifact.manifest.precision == "int8" and promise.latency_estimated
    assert promise.float_p50_ms > 1.0 > promise.p50_ms
    assert any("units as measured on" in note for note in promise.notes)
    with pytest.raises(UsageError, match="costs are of tensorrt, which cuda does not run in"):
        compile_within(
            CNN, target="cuda", costs=tmp_path / "c.json", output=tmp_path / "c", **given
        )


ROW = {"unit": "n", "op": "Conv", "inputs": [[1, 2]], "key": "k", "ms": 1.0}
GOOD = {
    "format": "qgraph unit costs", "version": 1, "engine": "onnxruntime-cpu f32",
    "processor": "p", "units": [ROW],
}  # fmt: skip


def test_a_good_file_is_read(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(GOOD))
    assert read_costs(tmp_path / "c.json").by_key() == {"k": 1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "no file of unit costs"),
        (json.dumps({**GOOD, "format": "other"}), "no file of unit costs"),
        (json.dumps({**GOOD, "version": 2}), "version"),
        (json.dumps({**GOOD, "more": 1}), "more"),
        (json.dumps({**GOOD, "units": 3}), "units"),
        (json.dumps({**GOOD, "units": [3]}), "units.0"),
        (json.dumps({**GOOD, "units": [ROW, ROW]}), "twice"),
        (json.dumps({**GOOD, "units": [{**ROW, "ms": -1.0}]}), "units.0.ms"),
        (json.dumps({**GOOD, "units": [{**ROW, "ms": "1"}]}), "units.0.ms"),
        (json.dumps({**GOOD, "units": [{**ROW, "ms": 1e30}]}), "units.0.ms"),
        (json.dumps({**GOOD, "units": [{**ROW, "ms": float("nan")}]}), "NaN"),
        (json.dumps({**GOOD, "units": [{**ROW, "inputs": [[-1]]}]}), "units.0.inputs"),
        (json.dumps({**GOOD, "units": [{**ROW, "inputs": "x"}]}), "units.0.inputs"),
        (json.dumps({**GOOD, "units": [{**ROW, "unknown": 1}]}), "unknown"),
        (json.dumps({**GOOD, "engine": ""}), "engine"),
    ],
)
def test_damaged_files_are_refused_in_one_line(content, message, tmp_path):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_costs(tmp_path / "c.json")
    assert "\n" not in str(caught.value) and "c.json" in str(caught.value)
