"""Searches layer by layer for the bits of weights, on networks with a failure planted in them."""

import json

import numpy as np
import onnx
import pytest
from planted import WIDTH, tanh_stack

from qgraph.artifact import Artifact
from qgraph.errors import AccuracyError, EngineError, UsageError
from qgraph.search import compile_within


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return tanh_stack(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(1)
    return {"t0": rng.normal(size=(600, WIDTH)).astype(np.float32)}


def searched(path, data, folder, **options):
    given = {"max_drop": "8%", "optimize": "size", "precision": "int4", "recipe": "rtn", **options}
    return compile_within(path, data=data, output=folder / "a", **given)


def layers_of(artifact):
    return {row["name"]: row for row in artifact.read_json("search.json")["layers"]}


def test_the_one_layer_that_four_bits_ruin_gets_more(net, samples, tmp_path):
    artifact = searched(net, samples, tmp_path, max_drop="15%")
    promise = artifact.manifest.promise
    assert promise.holds and artifact.manifest.precision == "int4"
    found = layers_of(artifact)
    assert set(found) == {"g0", "g1", "g2", "g3"}
    assert found["g2"]["bits"] in (8, None)
    assert {found[name]["bits"] for name in ("g0", "g1", "g3")} == {4}
    # Explained as it is, and built again from the recipe that the manifest has.
    plan = artifact.read_json("explain.json")["nodes"]
    assert plan["g2"][0] in ("int8", "float") and plan["g0"][0] == "int4"
    lines = artifact.manifest.recipe["passes"]["weight_only"]["layers"]
    assert f"g0=4:{found['g0']['group']}" in lines
    assert "1 layer in int8:128" in promise.reason


def test_every_way_was_measured_and_sizes_were_counted(net, samples, tmp_path):
    artifact = searched(net, samples, tmp_path)
    record = artifact.read_json("search.json")
    for row in record["layers"]:
        losses = [option["loss"] for option in row["options"]]
        assert [option["estimated"] for option in row["options"]] == [False] * len(losses)
        assert losses[0] == 0 and losses[1] < losses[2]
        sizes = [option["bytes"] for option in row["options"]]
        assert sizes == sorted(sizes, reverse=True)
    chosen = min(record["verified"], key=lambda row: abs(row["predicted_bytes"] - size(artifact)))
    # Names and attributes apart, the prediction is what was written.
    assert abs(chosen["predicted_bytes"] - size(artifact)) < 0.02 * size(artifact)


def size(artifact):
    return artifact.model_path.stat().st_size


def test_the_aim_is_met_with_the_smallest_that_holds(net, samples, tmp_path):
    loose = searched(net, samples, tmp_path / "l", max_drop="90%")
    assert {row["precision"] for row in layers_of(loose).values()} == {"int4:128"}
    tight = searched(net, samples, tmp_path / "t", max_drop="8%")
    assert size(loose) < size(tight) < net.stat().st_size


def test_what_the_user_says_of_a_layer_is_done(net, samples, tmp_path):
    artifact = searched(
        net, samples, tmp_path, max_drop="90%", exclude=["g3"],
        assign=["*=int4:32", "g1=int8", "g2=fp32"],
    )  # fmt: skip
    found = {name: row["precision"] for name, row in layers_of(artifact).items()}
    assert found == {"g0": "int4:32", "g1": "int8:128", "g2": "fp32"}


def test_a_bound_on_bytes_without_one_on_the_loss(net, samples, tmp_path):
    artifact = searched(net, samples, tmp_path, max_drop=None, max_size="100kB")
    assert artifact.manifest.promise.holds and size(artifact) <= 100_000
    with pytest.raises(AccuracyError, match="bytes, more than 9000"):
        searched(net, samples, tmp_path / "b", max_drop=None, max_size="9kB")
    assert not Artifact.load(tmp_path / "b" / "a").manifest.promise.holds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "npu"}, "has no int4"),
        ({"target": "cuda", "assign": ["g0=int2"]}, "none runs here|keep g0"),
        ({"assign": ["nothing=int4"]}, "fits no linear layer"),
        ({"assign": ["g0=int5"]}, "can't read --assign"),
        ({"assign": ["g0=int4:33"]}, "no groups of 33"),
        ({"recipe": "nf4"}, "no bits and groups"),
        ({"precision": "fp16"}, "nothing is searched in fp16"),
        ({"settings": ['weight_only.layers=["g0=8"]']}, "--assign PATTERN"),
        ({"exclude": ["*"]}, "no weight of the model"),
    ],
)
def test_errors(options, message, net, samples, tmp_path):
    with pytest.raises((UsageError, EngineError), match=message) as caught:
        searched(net, samples, tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_the_front_is_verified_and_a_point_of_it_can_be_built(net, samples, tmp_path):
    artifact = searched(net, samples, tmp_path, max_drop="50%", points=8)
    rows = artifact.read_json("search.json")["front"]
    assert len(rows) >= 8
    losses, sizes = ([row[key] for row in rows] for key in ("predicted_loss", "bytes"))
    assert losses == sorted(losses) and sizes == sorted(sizes, reverse=True)
    assert rows[0]["units_in_integers"] == 0 and rows[-1]["units_in_integers"] == len(
        rows[0]["ways"]
    )
    table = (artifact.path / "pareto.csv").read_text().splitlines()
    assert len(table) == len(rows) + 1
    picked = searched(net, samples, tmp_path, max_drop="50%", pick=4)
    assert {n: row["precision"] for n, row in layers_of(picked).items()} == rows[3]["ways"]
    assert size(picked) == rows[3]["bytes"] and picked.read_json("search.json")["front"] == rows
    with pytest.raises(UsageError, match="the front that is there has g"):
        searched(net, samples, tmp_path, max_drop="50%", pick=4, assign=["*=fp32", "g0=int8"])
    with pytest.raises(UsageError, match="there is no point 99"):
        searched(net, samples, tmp_path, max_drop="50%", pick=99)


def test_the_command_line(net, samples, tmp_path, invoke_json):
    np.savez(tmp_path / "d.npz", **samples)
    args = ("compile", net, "--precision", "int4", "--data", tmp_path / "d.npz", "--recipe", "rtn")
    found = invoke_json(*args, "--max-drop", "90%", "--optimize", "size", "-o", tmp_path / "a")
    assert found["promise"]["holds"]
    assert json.loads((tmp_path / "a" / "search.json").read_text())["layers"][0]["bits"] == 4


@pytest.mark.parametrize(
    ("precision", "bits"), [("int8-weights", {None, 8}), ("int2", {None, 8, 4, 3, 2})]
)
def test_no_layer_gets_fewer_bits_than_asked_for(precision, bits, net, samples, tmp_path):
    artifact = searched(net, samples, tmp_path, precision=precision, max_drop="90%")
    assert artifact.manifest.precision == precision and artifact.manifest.promise.holds
    rows = artifact.read_json("search.json")["layers"]
    for row in rows:
        offered = [option["precision"] for option in row["options"]]
        found = {None if each == "fp32" else int(each[3]) for each in offered}
        assert found == bits
    assert {row["bits"] for row in rows} == {min(each for each in bits if each)}


def test_nodes_that_share_a_weight_are_one_layer(net, samples, tmp_path):
    proto = onnx.load(net)
    (node,) = [each for each in proto.graph.node if each.name == "g1"]
    node.input[1] = "w0"
    onnx.save(proto, tmp_path / "tied.onnx")
    artifact = searched(tmp_path / "tied.onnx", samples, tmp_path, assign=["g1=int8"])
    found = layers_of(artifact)
    assert set(found) == {"g0", "g2", "g3"} and found["g0"]["precision"] == "int8:128"
    quantized = onnx.load(artifact.model_path)
    codes = {n.name: n.input[1] for n in quantized.graph.node if n.op_type == "MatMulNBits"}
    assert codes["g0"] == codes["g1"]


def test_weights_solved_for_on_data_are_scored_proved_and_written(net, samples, tmp_path):
    artifact = searched(net, samples, tmp_path, recipe="gptq", max_drop="15%")
    record = artifact.read_json("search.json")
    assert artifact.manifest.promise.holds
    stages = {stage.name: stage for stage in artifact.manifest.stages}
    methods = {row["name"]: row["method"] for row in stages["weight_only"].layers}
    assert methods["g0"] == "gptq"
    (drop,) = [row["drop"] for row in record["whole"] if "drop" in row]
    assert drop == min(row["drop"] for row in record["verified"]) <= 0.15
    # Beside the mixes, models of one kind that would be smaller were tried.
    assert any(row["precisions"] == "4 layers in int4:64" for row in record["verified"])


def test_another_promise_measures_nothing_again(net, samples, tmp_path, monkeypatch):
    monkeypatch.setenv("QGRAPH_CACHE", str(tmp_path / "cache"))
    first = searched(net, samples, tmp_path / "1", max_drop="90%")
    monkeypatch.setattr("qgraph.search.weights.estimate.local_losses", None)
    again = searched(net, samples, tmp_path / "2", max_drop="15%")
    with pytest.raises(TypeError):
        searched(net, samples, tmp_path / "3", max_drop="15%", assign=["g1=int8"])
    losses = [
        [
            option["loss"]
            for row in each.read_json("search.json")["layers"]
            for option in row["options"]
        ]
        for each in (first, again)
    ]
    assert losses[0] == losses[1]
