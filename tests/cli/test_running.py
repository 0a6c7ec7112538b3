"""run and bench, on plain models; artifacts are in test_compile.py."""

import numpy as np
import onnx
import pytest
from harness import model, run_reference


def reference(path, feeds):
    return run_reference(onnx.load(path), feeds)


def test_run_writes_what_the_model_computes(invoke, convnet, samples, tmp_path):
    result = invoke("run", convnet, "--data", samples, "-o", tmp_path / "out.npz")
    assert result.exit_code == 0 and "20 samples in onnxruntime-cpu" in result.stdout
    feeds = {"image": np.load(samples)["image"]}
    with np.load(tmp_path / "out.npz") as found:
        assert list(found) == ["logits"]
        expected = reference(convnet, feeds)["logits"]
        np.testing.assert_allclose(found["logits"], expected, rtol=1e-4, atol=1e-5)


def test_run_in_json(invoke_json, convnet, samples):
    found = invoke_json("run", convnet, "--data", samples, "--samples", "3")
    assert found["samples"] == 3 and found["outputs"][0]["shape"] == [3, 5]
    feeds = {"image": np.load(samples)["image"][:3]}
    expected = reference(convnet, feeds)["logits"]
    assert found["outputs"][0]["max"] == pytest.approx(float(expected.max()), rel=1e-4)


def test_outputs_of_different_shape_are_written_one_by_one(invoke, tmp_path):
    text = "net (float[4] x) => (int64[1, k] file) { file = NonZero(x) }"
    onnx.save(model(text), tmp_path / "m.onnx")
    rows = np.array([[1, 0, 0, 1], [1, 1, 1, 0]], np.float32)
    np.savez(tmp_path / "d.npz", x=rows)
    result = invoke("run", tmp_path / "m.onnx", "--data", tmp_path / "d.npz", "-o",
                    tmp_path / "out.npz")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    with np.load(tmp_path / "out.npz") as found:
        assert list(found) == ["file/0", "file/1"]
        np.testing.assert_array_equal(found["file/1"], [[0, 1, 2]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "bool", "string", "int64"])
def test_outputs_of_any_type(invoke, invoke_json, tmp_path, dtype):
    number = onnx.TensorProto.DataType.Value(dtype.upper() if dtype != "string" else "STRING")
    node = onnx.helper.make_node("Cast", ["x"], ["y"], to=number)
    info = [onnx.helper.make_tensor_value_info("x", 1, ["n", 2])]
    out = [onnx.helper.make_tensor_value_info("y", number, ["n", 2])]
    graph = onnx.helper.make_graph([node], "g", info, out)
    opset = [onnx.helper.make_opsetid("", 21)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "m.onnx"
    )
    np.savez(tmp_path / "d.npz", x=np.array([[0, 1], [2, 3]], np.float32))
    args = ("run", tmp_path / "m.onnx", "--data", tmp_path / "d.npz")
    result = invoke(*args, "-o", tmp_path / "out.npz")
    assert result.exit_code == 0, result.stderr
    with np.load(tmp_path / "out.npz") as found:
        want = {"bool": [False, True, True, True], "string": ["0", "1", "2", "3"]}
        assert found["y"].reshape(-1).tolist() == want.get(dtype, [0, 1, 2, 3])
    assert len(invoke_json(*args)["outputs"][0]["first"]) == 4


def test_bad_output_names_and_places(invoke, convnet, tmp_path):
    for name, code, what in [("out.txt", 2, "OUT.npz"), ("no/such/out.npz", 1, "can't be written")]:
        result = invoke("run", convnet, "--data", "random", "-o", tmp_path / name)
        assert result.exit_code == code and what in result.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"convnet.onnx"}


def test_an_older_output_survives_a_failed_write(invoke, convnet, tmp_path, monkeypatch):
    out = tmp_path / "out.npz"
    out.write_bytes(b"precious")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.lib.format.write_array", full)
    result = invoke("run", convnet, "--data", "random", "-o", out)
    assert result.exit_code == 1 and "No space left" in result.stderr
    assert out.read_bytes() == b"precious"
    assert {p.name for p in tmp_path.iterdir()} == {"convnet.onnx", "out.npz"}


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"picture": np.zeros((2, 3, 8, 8), np.float32)}, "image"),
        ({"image": np.zeros((2, 3, 9, 8), np.float32)}, "8"),
        ({"image": np.full((2, 3, 8, 8), np.nan, np.float32)}, "NaN"),
        ({"image": np.array([["a"]])}, "image"),
    ],
)
def test_data_that_does_not_fit(invoke, convnet, tmp_path, arrays, what):
    np.savez(tmp_path / "bad.npz", **arrays)
    for command in ("run", "bench"):
        result = invoke(command, convnet, "--data", tmp_path / "bad.npz")
        assert result.exit_code == 1 and what in result.stderr and "bug" not in result.stderr
        assert len([x for x in result.stderr.splitlines() if "error" in x]) == 1


def test_run_without_data_says_what_to_pass(invoke, convnet):
    result = invoke("run", convnet)
    assert result.exit_code == 2 and "--data" in result.stderr


def test_unknown_engines_and_recipes(invoke, convnet):
    result = invoke("run", convnet, "--data", "random", "--engine", "onnxruntime-cpuu")
    assert result.exit_code == 2 and "did you mean 'onnxruntime-cpu'?" in result.stderr
    result = invoke("bench", convnet, "--engine", "tensort")
    assert result.exit_code == 2 and "tensort" in result.stderr


def test_bench_measures_in_turn(invoke_json, convnet, tmp_path):
    onnx.save(onnx.load(convnet), tmp_path / "same.onnx")
    found = invoke_json("bench", convnet, "--vs", tmp_path / "same.onnx", "--seconds", "0.2")
    first, second = found["results"]
    assert first["model"] == str(convnet) and second["model"].endswith("same.onnx")
    for result in (first, second):
        assert 0 < result["p50_ms"] <= result["p90_ms"] <= result["p99_ms"]
        assert result["items_per_s"] == pytest.approx(1e3 / result["p50_ms"])
        assert result["peak_memory_bytes"] > 10_000_000
    assert first["relative_time"] == 1.0 and second["relative_time"] > 0


def test_bench_batches(invoke_json, invoke, convnet, samples, tmp_path):
    args = ("--seconds", "0.1", "--no-memory")
    found = invoke_json("bench", convnet, "--batch", "4", *args)
    assert found["results"][0]["batch"] == 4
    assert found["results"][0]["peak_memory_bytes"] is None
    assert invoke_json("bench", convnet, "--data", samples, "--batch", "20", *args)["batch"] == 20
    few = invoke("bench", convnet, "--data", samples, "--batch", "21", *args)
    assert few.exit_code == 1 and "there are 20" in few.stderr
    fixed = onnx.load(convnet)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "fixed.onnx")
    result = invoke("bench", tmp_path / "fixed.onnx", "--batch", "4", *args)
    assert result.exit_code == 2 and "--batch 4" in result.stderr


def test_bench_of_models_that_take_different_data(invoke, convnet, tmp_path):
    onnx.save(model("b (float[2] x) => (float[2] y) { y = Neg(x) }"), tmp_path / "b.onnx")
    result = invoke("bench", convnet, "--vs", tmp_path / "b.onnx", "--seconds", "0.1")
    assert result.exit_code == 1 and result.stderr.count("error:") == 1


def test_bench_tables(invoke, convnet):
    result = invoke("bench", convnet, "--vs", convnet, "--seconds", "0.1", "--no-memory", "-q")
    assert result.exit_code == 0 and "times as fast as" in result.stdout
    assert result.stderr == ""


def test_layers_of_a_model_and_its_results_beside_the_reference(invoke, invoke_json, convnet):
    result = invoke("layers", convnet)
    assert result.exit_code == 0 and "in onnxruntime-cpu" in result.stdout
    found = invoke_json("layers", convnet)
    names = {node.name for node in onnx.load(convnet).graph.node}
    assert found["layers"] and all(set(each["nodes"]) <= names for each in found["layers"])
    times = [each["time_us"] for each in found["layers"]]
    assert times == sorted(times, reverse=True)
    found = invoke_json("layers", convnet, "--compare")
    assert found["results"][-1]["name"] == "logits"
    assert all(each["max_relative"] < 1e-4 for each in found["results"])


def test_layers_of_what_is_not_there(invoke, convnet):
    assert "no such file" in invoke("layers", "nix.onnx").stderr
    assert "onnxruntime-cpu" in invoke("layers", convnet, "--engine", "onnxruntime-cpux").stderr
