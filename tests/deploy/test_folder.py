"""A plain folder: its script, where qgraph can't be imported, against the artifact's own session."""

import ast
import subprocess
import sys

import numpy as np
import pytest
from artifacts import linear, tree, write_artifact
from harness import model
from onnx import TensorProto, helper

from qgraph.artifact import Artifact
from qgraph.deploy import deploy
from qgraph.errors import ArtifactError, EngineError, ModelError, UsageError
from qgraph.runtime import backend

# Runs the script as its user does, with all that it must not need made impossible to import.
ALONE = """
import runpy, sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(folder, *args, without="qgraph,onnx,onnx_ir,ml_dtypes,networkx,pydantic"):
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, without, folder / "run.py", *args],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def check(artifact, folder, **options):
    """Deploy, run the script on its example and compare; return what it printed."""
    done = deploy(artifact, "folder", folder, **options)
    printed = run(folder, folder / "example.npz", folder.parent / "out.npz")
    with Artifact.load(artifact).open() as session, np.load(folder / "example.npz") as file:
        expected = session.run({name: file[name] for name in file.files})
    with np.load(folder.parent / "out.npz") as found:
        assert set(found.files) == set(expected)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)
            assert f"{name} {values.dtype} {values.shape}" in printed.stdout
    return done, printed


def test_the_script_computes_what_the_artifact_computes(artifact, tmp_path) -> None:
    done, printed = check(artifact, tmp_path / "out")
    assert sorted(tree(done.folder)) == [
        "README.md",
        "example.npz",
        "model.onnx",
        "qgraph.json",
        "run.py",
    ]
    assert "ran in CPUExecutionProvider" in printed.stdout and printed.stderr == ""


def test_the_script_on_ones_own_data(artifact, tmp_path) -> None:
    deploy(artifact, "folder", tmp_path / "out")
    x = np.random.default_rng(1).standard_normal((7, 4)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    run(tmp_path / "out", tmp_path / "in.npz", tmp_path / "y.npz")
    weight = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["y"], x @ weight, rtol=1e-5)


@pytest.mark.parametrize(
    "engine", ["onnxruntime-cpu", "onnxruntime-cuda", "openvino", "tensorrt", "unheard of"]
)
def test_the_script_is_short_and_needs_two_packages(tmp_path, engine) -> None:
    artifact = write_artifact(tmp_path / "a", linear(), engine=engine)
    deploy(artifact, "folder", tmp_path / "out")
    text = (tmp_path / "out" / "run.py").read_text()
    assert len(text.splitlines()) <= 40 and max(map(len, text.splitlines())) <= 200
    names = {
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert names - {"onnxruntime_ep_openvino"} == {"sys", "numpy", "onnxruntime"}


def test_external_data(tmp_path) -> None:
    artifact = write_artifact(tmp_path / "a", linear(), external=True)
    done, _ = check(artifact, tmp_path / "out")
    assert "w.bin" in tree(done.folder)


def test_a_decoder_with_its_tokenizer(decoder, tmp_path) -> None:
    done, _ = check(decoder, tmp_path / "out")
    assert {"tokenizer.json", "tokenizer_config.json"} < set(tree(done.folder))
    assert np.load(done.folder / "example.npz")["past_key_values.0.key"].shape == (1, 2, 1, 8)


def test_strings(tmp_path) -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.STRING, ["N", 2]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    artifact = write_artifact(tmp_path / "a", proto)
    deploy(artifact, "folder", tmp_path / "out")
    assert "y object (1, 2)" in run(tmp_path / "out").stdout


def test_pixels_and_codes_are_explained(tmp_path) -> None:
    code = {"kind": "codes", "dtype": "int8", "scale": 0.125, "zero_point": -3}
    codes = write_artifact(
        tmp_path / "codes",
        model("m (int8[N,8] x) => (int8[N,8] y) { y = Identity(x) }", {}),
        io={"inputs": {"x": code}, "outputs": {"y": code | {"zero_point": 7}}},
    )
    check(codes, tmp_path / "out")
    page = (tmp_path / "out" / "README.md").read_text()
    assert "value = (code - -3) * 0.125" in page and "value = (code - 7) * 0.125" in page
    pixels = write_artifact(
        tmp_path / "pixels",
        model("m (uint8[N,8,8,3] image) => (uint8[N,8,8,3] y) { y = Identity(image) }", {}),
        io={
            "inputs": {
                "image": {"kind": "pixels", "dtype": "uint8", "layout": "NHWC", "images": {}}
            },
            "outputs": {},
        },
    )
    check(pixels, tmp_path / "out2")
    assert "raw pixels 0 to 255, NHWC, RGB" in (tmp_path / "out2" / "README.md").read_text()


def test_images_are_explained(tmp_path) -> None:
    images = {"mean": [0.5], "std": [0.25], "channels": "gray"}
    artifact = write_artifact(tmp_path / "a", linear(), recipe={"images": images})
    page = (deploy(artifact, "folder", tmp_path / "out").folder / "README.md").read_text()
    assert "Images: gray pixels" in page and "mean [0.5], std [0.25], as NCHW" in page


def test_openvino_through_its_plugin(tmp_path) -> None:
    if reason := backend("openvino").unavailable():
        pytest.skip(reason)
    artifact = write_artifact(
        tmp_path / "a", linear(), engine="openvino", options={"float_precision": "f32"}
    )
    _, printed = check(artifact, tmp_path / "out")
    assert "ran in OpenVINOExecutionProvider" in printed.stdout
    printed = run(tmp_path / "out", without="qgraph,onnxruntime_ep_openvino")
    assert "without onnxruntime-ep-openvino" in printed.stderr
    assert "ran in CPUExecutionProvider" in printed.stdout


def test_a_provider_that_is_not_there_is_told(tmp_path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    artifact = write_artifact(tmp_path / "a", linear(), engine="onnxruntime-cuda")
    deploy(artifact, "folder", tmp_path / "out")
    assert "has no CUDAExecutionProvider" in run(tmp_path / "out").stderr


def test_without_an_example_the_script_wants_inputs(tmp_path) -> None:
    # No length that is tried divides 12 elements into rows of x.
    proto = model(
        "m (int64[A] x) => (float[N,M] y) { y = Reshape(w, x) }",
        {"w": np.arange(12, dtype=np.float32)},
    )
    artifact = write_artifact(tmp_path / "a", proto)
    done = deploy(artifact, "folder", tmp_path / "out")
    assert "example.npz" not in tree(done.folder)
    assert "python run.py inputs.npz" in (done.folder / "README.md").read_text()
    assert done.remarks.notes == ["no inputs were found that the model takes; --data D gives some"]


def test_the_example_may_be_a_sample(tmp_path) -> None:
    proto = model(
        "m (int64[2] x) => (float[N,M] y) { y = Reshape(w, x) }",
        {"w": np.arange(12, dtype=np.float32)},
    )
    artifact = write_artifact(tmp_path / "a", proto)
    np.savez(tmp_path / "d.npz", x=np.array([[3, 4], [5, 5]]))
    done, _ = check(artifact, tmp_path / "out", data=str(tmp_path / "d.npz"))
    assert np.load(done.folder / "example.npz")["x"].tolist() == [3, 4]
    assert "`example.npz` holds a sample." in (done.folder / "README.md").read_text()
    np.savez(tmp_path / "bad.npz", x=np.array([[5, 5]]))
    with pytest.raises(EngineError, match="failed while running"):
        deploy(artifact, "folder", tmp_path / "out2", data=str(tmp_path / "bad.npz"))


def test_threads_go_into_the_script(tmp_path) -> None:
    artifact = write_artifact(tmp_path / "a", linear(), options={"threads": 3})
    text = (deploy(artifact, "folder", tmp_path / "out").folder / "run.py").read_text()
    assert "THREADS = 3" in text and "intra_op_num_threads = THREADS" in text


def test_it_replaces_itself_and_nothing_else(artifact, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    deploy(artifact, "folder", out)
    other = write_artifact(tmp_path / "b", linear(), precision="fp16")
    deploy(other, "folder", out)
    assert '"artifact": "b"' in (out / "qgraph.json").read_text()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"would be lost: notes\.txt"):
        deploy(artifact, "folder", out)
    (out / "notes.txt").unlink()
    (out / "run.py").write_text("# mine")
    with pytest.raises(ArtifactError, match=r"would be lost: run\.py"):
        deploy(artifact, "folder", out)
    with pytest.raises(ArtifactError, match="is in use"):
        deploy(artifact, "folder", tmp_path)
    deploy(artifact, "triton", tmp_path / "repo", name="n")
    with pytest.raises(ArtifactError, match="was deployed to triton"):
        deploy(artifact, "folder", tmp_path / "repo" / "n")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is no folder"):
        deploy(artifact, "folder", tmp_path / "file")


def test_what_it_refuses(artifact, tmp_path) -> None:
    with pytest.raises(UsageError, match="--name is not for folder; it takes no options"):
        deploy(artifact, "folder", tmp_path / "out", name="n")
    for inside in (artifact, artifact / "sub" / "folder"):
        with pytest.raises(UsageError, match="is the artifact itself, or lies in it"):
            deploy(artifact, "folder", inside)
    x, y = (helper.make_tensor_value_info(n, TensorProto.BFLOAT16, [4]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(ModelError, match="bfloat16, which numpy's files can't hold"):
        deploy(write_artifact(tmp_path / "half", proto), "folder", tmp_path / "out")
    assert not (tmp_path / "out").exists()
