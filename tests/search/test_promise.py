"""Whole searches on real networks in real engines."""

import csv
import json

import numpy as np
import onnx
import pytest
from harness import model
from planted import CNN, ruined

from models.digits.data import load
from qgraph.artifact import Artifact
from qgraph.errors import AccuracyError, DataError, ModelError, UsageError
from qgraph.search import compile_within

VIT = CNN.with_name("digits_vit.onnx")


def score(artifact, images, labels):
    with artifact.open() as session:
        (name,) = [each.name for each in session.inputs]
        logits = [next(iter(session.run({name: row[None]}).values()))[0] for row in images]
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def floats(artifact):
    units = artifact.read_json("search.json")["units"]
    return {unit["name"] for unit in units if unit["precision"] in ("fp32", "fp16")}


def found_units(folder):
    return json.loads((folder / "a" / "search.json").read_text())["units"]


@pytest.mark.parametrize("network", [CNN, VIT], ids=lambda path: path.stem)
def test_the_promise_holds_on_samples_that_the_search_never_saw(
    network, digits, searched, tmp_path
):
    artifact = compile_within(
        network, data=searched, metric="top1", max_drop="0.5%", recipe="fast", output=tmp_path / "a"
    )
    promise = artifact.manifest.promise
    assert promise.holds and promise.metric == "top1" and promise.max_drop == 0.005
    assert promise.drop <= 0.005 and promise.samples > 100
    low, high = promise.interval
    assert low <= promise.drop <= high
    assert promise.relative_time <= 1
    unseen, labels = digits.test_x[100:], digits.test_y[100:]
    with_original = score(artifact, unseen, labels)
    assert with_original >= (0.98 if network is VIT else 1.0) - 0.005


def test_the_one_layer_that_rounding_ruins_stays_in_float(searched, tmp_path):
    path, name = ruined(tmp_path)
    artifact = compile_within(
        path,
        data=searched,
        metric="top1",
        max_drop="0.5%",
        optimize="size",
        recipe="fast",
        output=tmp_path / "a",
    )
    assert artifact.manifest.promise.holds
    units = artifact.read_json("search.json")["units"]
    layers = {unit["name"] for unit in units if unit["op"] in ("Conv", "Gemm")}
    # All others take the fewest bytes that they can; the one is in float16 or float32.
    for unit in units:
        if unit["name"] in layers:
            smallest = min(each["bytes"] for each in unit["ways"])
            (taken,) = (way for way in unit["ways"] if way["way"] == unit["precision"])
            assert (taken["bytes"] > smallest) is (unit["name"] == name), unit
    assert floats(artifact) >= {name} and len(layers) > 6
    worst = max(units, key=lambda unit: unit["loss"])
    assert worst["name"] == name and worst["drop"] > 0.05
    quantized = onnx.load(artifact.model_path)
    (node,) = [each for each in quantized.graph.node if each.name == name]
    made = {out: each.op_type for each in quantized.graph.node for out in each.output}
    assert made.get(node.input[1]) != "DequantizeLinear"


def test_a_model_that_integers_make_slower_stays_in_float(tmp_path):
    """Products this small take less time than turning their operands into codes."""
    rng = np.random.default_rng(0)
    layers = "\n".join(f"g{i} = MatMul (t{i}, w)\n t{i + 1} = Tanh (g{i})" for i in range(16))
    proto = model(
        f"agraph (float[N, 8] t0) => (float[N, 8] y) {{ {layers}\n y = Identity (t16) }}",
        {"w": rng.normal(0, 0.5, size=(8, 8)).astype(np.float32)},
    )
    onnx.save(proto, tmp_path / "thin.onnx")
    artifact = compile_within(
        tmp_path / "thin.onnx",
        data={"t0": rng.normal(size=(24, 8)).astype(np.float32)},
        max_drop="1%",
        recipe="fast",
        output=tmp_path / "a",
    )
    promise = artifact.manifest.promise
    assert artifact.manifest.precision in ("fp32", "bf16", "fp16") and promise.holds
    assert "integers win nothing" in promise.reason
    assert promise.metric == "agreement" and promise.judged_by == "upper bound"
    assert any("give more" in note for note in promise.notes)


def test_what_can_not_be_kept_is_kept_as_an_artifact_and_said(searched, tmp_path):
    with pytest.raises(AccuracyError, match="bytes, more than 2000") as caught:
        compile_within(
            CNN, data=searched, metric="top1", max_drop="0.5%", max_size="2kB", recipe="fast",
            output=tmp_path / "a",
        )  # fmt: skip
    assert caught.value.exit_code == 1
    assert not Artifact.load(tmp_path / "a").manifest.promise.holds


def test_the_front_is_verified_and_a_point_of_it_can_be_built(
    searched, tmp_path, invoke, invoke_json
):
    np.savez(tmp_path / "d.npz", **searched)
    args = ("compile", CNN, "--data", tmp_path / "d.npz", "--metric", "top1", "--recipe", "fast")
    args = (*args, "--max-drop", "0.5%", "--optimize", "size", "-o", tmp_path / "a")
    found = invoke_json(*args, "--pareto", "--assign", "*head*=fp32")
    rows = list(csv.DictReader((tmp_path / "a" / "pareto.csv").open()))
    assert len(rows) >= 8 and len(found["front"]) == len(rows)
    assert all(0.9 <= float(row["score"]) <= 1 for row in rows)
    sizes = [int(row["bytes"]) for row in rows]
    assert len(set(sizes)) == len(sizes)
    assert all(
        unit["precision"] == "fp32" for unit in found_units(tmp_path) if unit["op"] == "Gemm"
    )
    picked = invoke_json(*args, "--pick", "2")
    assert picked["front"] == found["front"]
    units = found_units(tmp_path)
    assert sum(unit["precision"] == "int8" for unit in units) == int(rows[1]["units_in_integers"])
    assert {unit["name"]: unit["precision"] for unit in units} == found["front"][1]["ways"]
    head = next(unit for unit in units if unit["op"] == "Gemm")
    assert head["precision"] == "fp32"
    result = invoke(*args, "--pick", "99")
    assert result.exit_code == 2 and "--pick 1 to" in result.stderr
    shown = invoke("explain", tmp_path / "a")
    assert shown.exit_code == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "top9"}, UsageError, "unknown metric"),
        ({"max_drop": "half"}, UsageError, "is no loss"),
        ({"max_drop": None}, UsageError, "nothing bounds the search"),
        ({"max_size": "10 elephants"}, UsageError, "can't be read"),
        ({"optimize": "speed"}, UsageError, "unknown --optimize"),
        ({"data": {"image": load().train_x}}, DataError, "needs a label"),
        ({"data": "random"}, DataError, "random data proves nothing"),
        (
            {"data": {"image": load().train_x[:5], "label": load().train_y[:5]}},
            DataError,
            "too few",
        ),
        ({"assign": ["nothing=int8"]}, UsageError, "fits no node"),
        ({"assign": ["Conv=int3"]}, UsageError, "can't read --assign"),
        ({"target": "npu"}, Exception, "no engine|has no int8|nothing can be measured"),
    ],
)
def test_errors(options, error, message, searched, tmp_path):
    given = {"data": searched, "metric": "top1", "max_drop": "1%", "recipe": "fast", **options}
    with pytest.raises(error, match=message):
        compile_within(CNN, output=tmp_path / "a", **given)
    assert not (tmp_path / "a").exists()


def test_the_command_line_says_what_is_missing(invoke, tmp_path):
    result = invoke("compile", CNN, "--max-drop", "1%", "-o", tmp_path / "a")
    assert result.exit_code == 2 and "pass --data" in result.stderr
    result = invoke("compile", CNN, "--max-drop", "1%", "--data", "d.npz", "--io", "uint8")
    assert result.exit_code == 2 and "--io does not go with --max-drop" in result.stderr
    result = invoke("compile", CNN, "--metric", "top1", "--data", "d.npz")
    assert result.exit_code == 2 and "--max-drop" in result.stderr


def test_a_quantized_model_is_refused(searched, tmp_path):
    proto = model(
        """agraph (float[N, 4] x) => (float[N, 4] y) {
            q = QuantizeLinear (x, s, z)
            y = DequantizeLinear (q, s, z)
        }""",
        {"s": np.float32(0.1), "z": np.uint8(3)},
    )
    onnx.save(proto, tmp_path / "q.onnx")
    with pytest.raises(ModelError, match="already quantized"):
        compile_within(tmp_path / "q.onnx", data=searched, max_drop="1%", output=tmp_path / "a")
