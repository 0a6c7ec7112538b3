"""OpenVINO Model Server's repository: its schema, and OpenVINO itself on what was written."""

import json

import numpy as np
import pytest
from artifacts import linear, tree, write_artifact
from harness import model
from onnx import TensorProto, helper

from qgraph.artifact import Artifact
from qgraph.deploy import deploy
from qgraph.errors import ArtifactError, EngineError, ModelError, UsageError

# Keys that the server's schema has (src/schema.cpp): any other one makes it refuse the whole file.
KEYS = {
    "name": str,
    "base_path": str,
    "batch_size": (int, str),
    "model_version_policy": dict,
    "shape": (dict, str),
    "layout": (dict, str),
    "nireq": int,
    "target_device": str,
    "allow_cache": bool,
    "plugin_config": dict,
}
SERVER = "openvino-model-server"


def configs(folder):
    """Read the models' entries, each held against the schema."""
    document = json.loads((folder / "config.json").read_text())
    assert "model_config_list" in document
    found = {}
    for entry in document["model_config_list"]:
        assert list(entry) == ["config"]
        config = entry["config"]
        for key, value in config.items():
            assert isinstance(value, KEYS[key])
        assert all(isinstance(v, str | bool | int) for v in config["plugin_config"].values())
        assert len(config["model_version_policy"]) == 1
        found[config["name"]] = config
    return found


def test_a_model(artifact, tmp_path) -> None:
    repo = tmp_path / "repo"
    done = deploy(artifact, SERVER, repo, name="net", instances=3, version_policy="latest:2")
    assert sorted(tree(repo)) == [
        "config.json",
        "net/1/model.onnx",
        "net/README.md",
        "net/qgraph.json",
    ]
    assert configs(repo)["net"] == {
        "name": "net",
        "base_path": "/models/net",
        "target_device": "CPU",
        "model_version_policy": {"latest": {"num_versions": 2}},
        "plugin_config": {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "3"},
        "nireq": 3,
    }
    assert repo / "config.json" in done.files
    page = (done.folder / "README.md").read_text()
    assert f"-v {repo}:/models:ro" in page and "--config_path /models/config.json" in page


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_openvino_computes_with_it_what_the_artifact_computes(tmp_path, precision) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    proto = model("m (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", {"w": weight})
    artifact = write_artifact(
        tmp_path / "a", proto, engine="openvino", options={"float_precision": precision}
    )
    done = deploy(artifact, SERVER, tmp_path / "repo")
    properties = configs(tmp_path / "repo")["a"]["plugin_config"]
    assert properties["INFERENCE_PRECISION_HINT"] == precision
    compiled = openvino.Core().compile_model(done.folder / "1" / "model.onnx", "CPU", properties)
    assert (
        str(compiled.get_property("INFERENCE_PRECISION_HINT")).split("'")[1]
        in ({"f32": ("f32", "float32"), "bf16": ("bf16", "bfloat16", "f32", "float32")}[precision])
    )
    x = rng.standard_normal((5, 64)).astype(np.float32)
    (found,) = compiled({"x": x}).values()
    np.testing.assert_allclose(found, x @ weight, rtol=0, atol=1e-4 if precision == "f32" else 0.3)


def test_fixed_shapes(artifact, tmp_path) -> None:
    deploy(artifact, SERVER, tmp_path / "repo", name="net", shape=("x:16x4",))
    assert configs(tmp_path / "repo")["net"]["shape"] == {"x": "(16,4)"}


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        ("x", "can't be understood"),
        ("16x4", "can't be understood"),
        ("x:0x4", "can't be understood"),
        ("x:16x4x", "can't be understood"),
        ("z:16x4", "no input 'z'; it has x"),
        ("x:16x5", "does not fit"),
        ("x:16", "does not fit"),
    ],
)
def test_shapes_that_do_not_fit(artifact, tmp_path, shape, line) -> None:
    with pytest.raises(UsageError, match=line):
        deploy(artifact, SERVER, tmp_path / "repo", shape=(shape,))
    assert not (tmp_path / "repo").exists()


def test_further_models_and_versions_leave_what_is_there_alone(artifact, tmp_path) -> None:
    repo = tmp_path / "repo"
    theirs = {"config": {"name": "theirs", "base_path": "/models/theirs"}}
    repo.mkdir()
    (repo / "config.json").write_text(
        json.dumps({"monitoring": {"metrics": {"enable": True}}, "model_config_list": [theirs]})
    )
    deploy(artifact, SERVER, repo, name="net", instances=2)
    written = json.loads((repo / "config.json").read_text())
    assert written["monitoring"]["metrics"]["enable"] and written["model_config_list"][0] == theirs
    # As a person might tune it.
    written["model_config_list"][1]["config"]["nireq"] = 9
    (repo / "config.json").write_text(json.dumps(written))
    first = tree(repo)
    other = write_artifact(tmp_path / "other", linear(), precision="fp16")
    done = deploy(other, SERVER, repo, name="net")
    after = tree(repo)
    assert (
        after.pop("net/2/model.onnx") and after.pop("net/qgraph.json") != first["net/qgraph.json"]
    )
    first.pop("net/qgraph.json")
    assert after == first and repo / "config.json" not in done.files
    with pytest.raises(ArtifactError, match="nireq: 2 there, 4 now"):
        deploy(other, SERVER, repo, name="net", instances=4)
    with pytest.raises(ArtifactError, match="lists a model 'theirs'"):
        deploy(other, SERVER, repo, name="theirs")


@pytest.mark.parametrize("content", ["{", "[]", '{"model_config_list": 3}', '{"x": 1}'])
def test_a_file_that_is_no_configuration(artifact, tmp_path, content) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "config.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"config\.json"):
        deploy(artifact, SERVER, repo)
    assert tree(repo) == {"config.json": content.encode()}


def test_what_openvino_refuses(tmp_path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    node = helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft")
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4]) for n in "xy"]
    graph = helper.make_graph([node], "g", tensors[:1], tensors[1:])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    node.op_type = proto.graph.node[0].op_type = "BiasSplitGelu"
    artifact = write_artifact(tmp_path / "a", proto)
    with pytest.raises(EngineError, match="OpenVINO refuses the model: "):
        deploy(artifact, SERVER, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


def test_what_the_servers_api_does_not_have(tmp_path) -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.BFLOAT16, [4]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    artifact = write_artifact(tmp_path / "a", proto)
    with pytest.raises(ModelError, match="input or output 'x': is bfloat16"):
        deploy(artifact, SERVER, tmp_path / "repo")


def test_a_decoder(decoder, tmp_path) -> None:
    done = deploy(decoder, SERVER, tmp_path / "repo", name="d")
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    compiled = openvino.Core().compile_model(
        done.folder / "1" / "model.onnx", "CPU", configs(tmp_path / "repo")["d"]["plugin_config"]
    )
    with Artifact.load(decoder).open() as session:
        empty = {info.name: np.zeros((1, 2, 0, 8), np.float32) for info in session.inputs[1:]}
        feeds = {"input_ids": np.array([[3, 4, 5]]), **empty}
        expected = session.run(feeds)
    found = {key.any_name: value for key, value in compiled(feeds).items()}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-3)
