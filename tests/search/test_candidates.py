"""Whole models in other precisions, which a search may choose."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from harness import model

from qgraph.search import compile_within
from qgraph.search.candidates import may_win
from qgraph.search.choice import Choice
from qgraph.search.costs import Engine
from qgraph.search.goal import Goal
from qgraph.search.whole import Timed, Whole


@pytest.fixture(scope="module")
def thin(tmp_path_factory):
    """A network whose bytes are in products of 96 x 96."""
    rng = np.random.default_rng(0)
    layers = "\n".join(f"g{i} = MatMul (t{i}, w{i})\n t{i + 1} = Tanh (g{i})" for i in range(4))
    weights = {f"w{i}": rng.normal(0, 0.1, size=(96, 96)).astype(np.float32) for i in range(4)}
    proto = model(f"agraph (float[N, 96] t0) => (float[N, 96] y) {{ {layers}\n y = Exp (t4) }}",
                  weights)  # fmt: skip
    for node in proto.graph.node:
        node.name = node.output[0]
    path = tmp_path_factory.mktemp("thin") / "thin.onnx"
    onnx.save(proto, path)
    return path


def searched(path, folder, **options):
    rng = np.random.default_rng(1)
    data = {"t0": rng.normal(size=(90, 96)).astype(np.float32)}
    given = {"max_drop": "35%", "optimize": "size", "recipe": "fast", **options}
    artifact = compile_within(path, data=data, output=folder / "a", **given)
    rows = {row["name"]: row for row in artifact.read_json("search.json")["whole"]}
    return artifact, rows


def products(artifact):
    return {
        node.name: node.op_type
        for node in onnx.load(artifact.model_path).graph.node
        if "MatMul" in node.op_type
    }


def test_a_whole_model_in_few_bits_is_chosen_where_it_is_the_smallest(thin, tmp_path):
    artifact, rows = searched(thin, tmp_path)
    manifest = artifact.manifest
    assert manifest.precision == "int4" and manifest.promise.holds
    # Shorter groups need no padding here, and their scales are in float16.
    assert "4 units in int4:32+fp16" in manifest.promise.reason
    assert {"fp32", "fp16", "int8", "int8-dynamic", "int8-weights", "int4"} <= set(rows)
    smallest = min(row["bytes"] for row in rows.values() if "bytes" in row)
    assert rows["int4"]["bytes"] > smallest == artifact.model_path.stat().st_size
    # What was scored and written has solved weights.
    assert any(
        entry["method"] == "gptq"
        for stage in manifest.stages
        for entry in stage.layers
    )  # fmt: skip
    assert "drop" not in rows["int8-dynamic"], "what can't be the best was scored"
    with artifact.open() as session:
        assert session.run({"t0": np.zeros((2, 96), np.float32)})["y"].shape == (2, 96)


def test_whole_models_are_held_to_what_was_said_of_single_nodes(thin, tmp_path):
    artifact, _ = searched(thin, tmp_path, assign=["g1=fp32"])
    assert artifact.manifest.precision == "int4"
    assert products(artifact)["g1"] == "MatMul"
    assert sum(kind == "MatMulNBits" for kind in products(artifact).values()) == 3
    artifact, rows = searched(thin, tmp_path, assign=["g2=int8"])
    assert artifact.manifest.precision == "int8"
    assert not {"int4", "int8-weights", "int8-dynamic"} & set(rows)


def test_a_model_that_can_not_be_built_is_noted(thin, tmp_path):
    artifact, rows = searched(thin, tmp_path, settings=["weight_only.group=48"])
    assert artifact.manifest.promise.holds
    assert "no groups of 48" in rows["int4"]["reason"]
    assert "no groups of 48" in rows["int8-weights"]["reason"]


def test_without_a_drop_the_model_that_loses_least_within_the_bounds_is_taken(thin, tmp_path):
    artifact, rows = searched(thin, tmp_path, max_drop=None, max_size="60kB")
    fits = {name: row for name, row in rows.items() if row.get("bytes", 1e9) <= 60000}
    assert len(fits) > 2 and "fp32" not in fits and "fp16" not in fits
    offered = {name: row for name, row in fits.items() if name != "int8"}  # a mix loses less
    assert all("drop" in row for row in offered.values() if not row["rounded_only"])
    least = min(row["drop_bound"] for row in fits.values() if "drop" in row)
    size = artifact.model_path.stat().st_size
    (taken,) = (row for row in fits.values() if row["bytes"] == size)
    assert taken["drop_bound"] == pytest.approx(least)


def test_a_model_without_anything_to_quantize_stays_what_it_is(tmp_path):
    proto = model("agraph (float[N, 96] t0) => (float[N, 96] y) { y = Tanh (t0) }", {})
    onnx.save(proto, tmp_path / "tanh.onnx")
    artifact, rows = searched(tmp_path / "tanh.onnx", tmp_path)
    assert (
        artifact.manifest.precision in ("fp32", "bf16", "fp16") and artifact.manifest.promise.holds
    )
    assert rows["int4"]["reason"] == "nothing of the model can be in it"


def timed(p50_ms, size, name="int4"):
    whole = Whole(name, name, Path("m.onnx"), draft=name != "fp32")
    return Timed(whole, Engine("onnxruntime-cpu"), p50_ms, p50_ms, 1.0, size)


FLOAT = timed(4.0, 100, "fp32")
BEST = Choice((1,), 0.1, 3.0, 40.0, 0.0)


@pytest.mark.parametrize(
    ("p50_ms", "size", "goal", "best", "wanted"),
    [
        (2.0, 90, Goal(0.1), BEST, True),
        (3.5, 20, Goal(0.1), BEST, False),  # slower than the best mix
        (3.5, 20, Goal(0.1), None, True),  # but than no mix
        (9.0, 20, Goal(0.1, "size"), BEST, True),
        (1.0, 50, Goal(0.1, "size"), BEST, False),
        (2.0, 50, Goal(0.1, max_bytes=45), BEST, False),  # too large
        (2.0, 20, Goal(0.1, max_ms=1.5), BEST, False),  # too slow
        (9.0, 20, Goal(0.1, max_bytes=50), None, True),  # float is too large
        (2.0, 20, Goal(None, max_bytes=200), BEST, False),  # float loses nothing
        (2.0, 20, Goal(None, max_bytes=50), BEST, True),
    ],
)
def test_weights_are_solved_for_only_where_that_may_win(p50_ms, size, goal, best, wanted):
    assert may_win(timed(p50_ms, size), goal, FLOAT, best) is wanted
