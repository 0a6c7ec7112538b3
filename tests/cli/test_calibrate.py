import json

import numpy as np
import pytest


def test_the_file_and_what_is_said(invoke, invoke_json, convnet, samples, cwd):
    result = invoke("calibrate", convnet, "--data", samples)
    assert result.exit_code == 0, result.stderr
    text = (cwd / "convnet.encodings.json").read_text()
    document = json.loads(text)
    assert document["format"] == "qgraph-encodings" and document["target"] == "cpu"
    assert document["data"]["samples"] == 16  # what compile holds out is held out here
    names = [each["name"] for each in document["tensors"]]
    assert f"{len(names)} in uint8" in result.stdout and "a second" in result.stdout
    for each in document["tensors"]:
        assert each["scale"] > 0 and each["reason"] and each["range"][0] <= each["range"][1]
    # Again gives the same bytes; an older encodings file is replaced.
    assert invoke("calibrate", convnet, "--data", samples).exit_code == 0
    assert (cwd / "convnet.encodings.json").read_text() == text
    found = invoke_json("calibrate", convnet, "--data", samples, "-o", "other.json")
    assert found["encodings"] == "other.json" and found["tensors"] == document["tensors"]
    verbose = invoke("calibrate", convnet, "--data", samples, "-v").stdout
    assert all(name in verbose for name in names)
    quiet = invoke("calibrate", convnet, "--data", samples, "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")


def test_settings_and_recipes_reach_it(invoke_json, convnet, samples, cwd):
    mean = invoke_json("calibrate", convnet, "--data", samples)
    widest = invoke_json("calibrate", convnet, "--data", samples, "--set",
                         "calibrate.observer=minmax")  # fmt: skip
    assert widest["calibration"]["observer"] == "minmax"
    pairs = list(zip(mean["tensors"], widest["tensors"], strict=True))
    assert all(a["scale"] <= b["scale"] for a, b in pairs)
    assert any(a["scale"] < b["scale"] for a, b in pairs)
    fewer = invoke_json("calibrate", convnet, "--data", samples, "--samples", "5")
    assert fewer["data"]["samples"] == 4
    assert fewer["calibration"]["memory_mb"] == 1024
    small = invoke_json("calibrate", convnet, "--data", samples, "--memory", "9")
    assert small["calibration"]["memory_mb"] == 9
    less = invoke_json("calibrate", convnet, "--data", samples, "--exclude", "conv_*")
    assert len(less["tensors"]) < len(mean["tensors"])


def test_compile_takes_the_file(invoke, invoke_json, convnet, samples, cwd):
    invoke("calibrate", convnet, "--data", samples)
    args = ("compile", convnet, "--data", samples)
    assert invoke(*args, "-o", "plain").exit_code == 0
    found = invoke_json(*args, "-o", "given", "--encodings", "convnet.encodings.json")
    assert not [line for line in found["warnings"] if "encodings" in line]
    assert (cwd / "plain/model.onnx").read_bytes() == (cwd / "given/model.onnx").read_bytes()
    alone = invoke("compile", convnet, "-o", "alone", "--encodings", "convnet.encodings.json")
    assert alone.exit_code == 0 and (cwd / "alone/manifest.json").is_file()


def test_foreign_encodings_become_ours(invoke, invoke_json, convnet, samples, cwd):
    names = [t["name"] for t in invoke_json("calibrate", convnet, "--data", samples)["tensors"]]
    (cwd / "table.json").write_text(json.dumps({names[0]: [-4.0, 4.0], "nothing": [0, 1]}))
    result = invoke("calibrate", convnet, "--data", samples, "--encodings", "table.json",
                    "-o", "mixed.json")  # fmt: skip
    assert result.exit_code == 0
    assert "'nothing' not used" in result.stderr and "1 of " in result.stdout
    first = json.loads((cwd / "mixed.json").read_text())["tensors"][0]
    assert first["name"] == names[0] and first["range"] == [-4.0, 4.0]
    assert first["scale"] == pytest.approx(8 / 255)


def test_the_cache_is_used_and_named(invoke, convnet, samples, cwd, monkeypatch, tmp_path):
    monkeypatch.setenv("QGRAPH_CACHE", str(tmp_path / "kept"))
    args = ("calibrate", convnet, "--data", samples, "-v")
    assert "come from the cache" not in invoke(*args).stdout
    first = (cwd / "convnet.encodings.json").read_text()
    again = invoke(*args)
    assert "come from the cache" in again.stdout and str(tmp_path / "kept") in again.stderr
    assert (cwd / "convnet.encodings.json").read_text() == first
    off = invoke(*args, "--set", "calibrate.cache=false")
    assert "come from the cache" not in off.stdout
    compiled = invoke("compile", convnet, "--data", samples, "-v")
    assert "come from the cache" in compiled.stderr
    manifest = json.loads((cwd / "convnet.int8/manifest.json").read_text())
    stage = next(each for each in manifest["stages"] if each["name"] == "calibrate")
    assert stage["notes"][0].endswith("values come from the cache")


@pytest.mark.parametrize(
    ("args", "code", "what"),
    [
        ((), 2, "calibration needs data; pass --data"),
        (("--data", "none.npz"), 1, "none.npz"),
        (("--data", "D", "--target", "gpu9"), 2, "unknown target 'gpu9'"),
        (("--data", "D", "-o", "notes.txt"), 1, "is no encodings file of qgraph's"),
        (("--data", "D", "-o", "none/e.json"), 1, "there is no such folder"),
        (("--data", "D", "--encodings", "notes.txt"), 1, "notes.txt: is no JSON"),
        (("--data", "D", "--set", "calibrate.observer=mima"), 2, "did you mean 'minmax'?"),
        (("--data", "D", "--set", "calibrate.checkpoint_s=-1"), 2, "calibrate.checkpoint_s"),
    ],
)
def test_errors_are_one_line(args, code, what, invoke, convnet, samples, cwd):
    (cwd / "notes.txt").write_text("mine")
    given = [str(samples) if each == "D" else each for each in args]
    result = invoke("calibrate", convnet, *given)
    assert result.exit_code == code and what in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert (cwd / "notes.txt").read_text() == "mine"
    assert [p.name for p in cwd.iterdir()] == ["notes.txt"]
    as_json = invoke("calibrate", convnet, *given, "--json")
    assert json.loads(as_json.stdout)["error"]["exit_code"] == code


def test_encodings_are_for_int8_only(invoke, convnet, samples, cwd):
    (cwd / "e.json").write_text('{"x": [0, 1]}')
    result = invoke("compile", convnet, "--precision", "fp16", "--encodings", "e.json")
    assert result.exit_code == 2 and "encodings are for int8, not fp16" in result.stderr


def test_a_quantized_model_is_refused(invoke, convnet, samples, cwd):
    invoke("compile", convnet, "--data", samples, "-o", "q")
    result = invoke("calibrate", "q/model.onnx", "--data", samples)
    assert result.exit_code == 1 and "is quantized already" in result.stderr
    assert not list(cwd.glob("*.json"))


def test_a_model_with_nothing_to_quantize(invoke_json, cwd, tmp_path):
    import onnx
    from harness import model

    onnx.save(model("m (float[n, 4] x) => (float[n, 4] y) { y = Sigmoid(x) }"), cwd / "m.onnx")
    np.savez(cwd / "d.npz", x=np.zeros((4, 4), np.float32))
    found = invoke_json("calibrate", "m.onnx", "--data", "d.npz")
    assert found["tensors"] == [] and "nothing to quantize" in found["warnings"][0]
    assert json.loads((cwd / "m.encodings.json").read_text())["tensors"] == []
