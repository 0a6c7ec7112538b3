"""`qgraph lint` as users call it."""

import hashlib
import json

import numpy as np
import onnx
import pytest
from harness import model


@pytest.fixture
def asymmetric(tmp_path):
    text = """net (float[2, 8] x) => (float[2, 8] y) {
      q = QuantizeLinear(x, s, z)
      y = DequantizeLinear(q, s, z)
    }"""
    proto = model(text, {"s": np.float32(0.05), "z": np.int8(7)})
    for index, node in enumerate(proto.graph.node):
        node.name = f"[bold]{node.op_type}\x1b_{index}"
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_refusals_set_the_exit_status(invoke, asymmetric, convnet):
    assert invoke("lint", asymmetric, "--target", "tensorrt").exit_code == 1
    assert invoke("lint", asymmetric, "--target", "cpu").exit_code == 0
    assert invoke("lint", asymmetric, "--target", "cpu", "--engine", "openvino").exit_code == 1
    assert invoke("lint", convnet, "--target", "tensorrt").exit_code == 0


def test_the_rule_its_source_and_the_fix_are_shown(invoke, asymmetric):
    shown = invoke("lint", asymmetric, "--target", "tensorrt").stdout
    assert "zero-point" in shown and "zero point 7" in shown and "--fix" in shown
    assert "docs.nvidia.com" in shown and "[bold]QuantizeLinear" in shown and "\x1b" not in shown


def test_json(invoke, asymmetric):
    result = invoke("lint", asymmetric, "--target", "tensorrt", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 1 and told["refused"] and told["counts"]["refused"] == 2
    first = told["findings"][0]
    assert first["rule"] == "zero-point" and first["engine"] == "tensorrt" and first["source"]
    assert first["op"] == "QuantizeLinear" and first["fix"] and first["severity"] == "refused"


def test_float_models_list_what_int8_leaves_in_float(invoke, invoke_json, convnet):
    told = invoke_json("lint", convnet)
    assert told["findings"] == [] and all(each["reason"] for each in told["not_quantized"])
    shown = invoke("lint", convnet, "--target", "tensorrt").stdout
    assert "Not quantized" in shown


def test_nothing_is_written_without_fix(invoke, asymmetric):
    before = digest(asymmetric)
    invoke("lint", asymmetric, "--target", "tensorrt")
    assert [p.name for p in asymmetric.parent.iterdir()] == ["m.onnx"]
    assert digest(asymmetric) == before


def test_fix_writes_beside_the_model_and_says_what_moved(invoke, asymmetric):
    before = digest(asymmetric)
    result = invoke("lint", asymmetric, "--target", "tensorrt", "--fix")
    assert result.exit_code == 0, result.stdout
    made = asymmetric.with_name("m.fixed.onnx")
    assert sorted(p.name for p in asymmetric.parent.iterdir()) == ["m.fixed.onnx", "m.onnx"]
    assert digest(asymmetric) == before and str(made) in result.stderr
    assert "values move by at most" in result.stdout and "rounding" in result.stdout
    onnx.checker.check_model(onnx.load(made), full_check=True)
    assert invoke("lint", made, "--target", "tensorrt").exit_code == 0


def test_fix_over_the_input_only_where_o_names_it(invoke, asymmetric):
    before = digest(asymmetric)
    result = invoke("lint", asymmetric, "--target", "tensorrt", "--fix", "-o", asymmetric)
    assert result.exit_code == 0 and digest(asymmetric) != before
    assert invoke("lint", asymmetric, "--target", "tensorrt").exit_code == 0


def test_fix_of_a_legal_model_writes_nothing_unless_asked(invoke, convnet):
    result = invoke("lint", convnet, "--target", "tensorrt", "--fix")
    assert result.exit_code == 0 and "nothing was fixed" in result.stderr
    assert not convnet.with_name("convnet.fixed.onnx").exists()
    asked = convnet.with_name("asked.onnx")
    invoke("lint", convnet, "--target", "tensorrt", "--fix", "-o", asked)
    assert asked.is_file()


def test_fix_as_json(invoke, asymmetric):
    result = invoke("lint", asymmetric, "--target", "tensorrt", "--fix", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 0 and told["refused"] and not told["fix"]["after"]["refused"]
    assert told["fix"]["output"].endswith("m.fixed.onnx")
    [applied] = [each for each in told["fix"]["applied"] if each["changed"]]
    assert applied["name"] == "symmetric_activations" and applied["numerics"] == "rounding"


def test_what_is_left_after_a_fix_sets_the_exit_status(invoke, tmp_path):
    proto = model(
        "net (float[2] x) => (uint8[2] y) { y = QuantizeLinear(x, s, z) }",
        {"s": np.float32(0.1), "z": np.uint8(3)},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    result = invoke("lint", tmp_path / "m.onnx", "--target", "tensorrt", "--fix")
    assert result.exit_code == 1 and "its codes are a graph output" in result.stdout


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (("--target", "tensorrd"), 2, "did you mean 'tensorrt'?"),
        (("--engine", "tensorrt"), 2, "engine of cpu"),
        (("-o", "x.onnx"), 2, "-o needs --fix"),
    ],
)
def test_wrong_usage_is_one_line(invoke, asymmetric, args, code, line):
    result = invoke("lint", asymmetric, *args)
    assert result.exit_code == code and line in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_folder_without_write_access_or_a_broken_file_is_one_line(invoke, asymmetric, tmp_path):
    nowhere = tmp_path / "no" / "where.onnx"
    result = invoke("lint", asymmetric, "--target", "tensorrt", "--fix", "-o", nowhere)
    assert result.exit_code == 1 and "folder does not exist" in result.stderr
    (tmp_path / "bad.onnx").write_bytes(b"\x00\xff")
    result = invoke("lint", tmp_path / "bad.onnx")
    assert result.exit_code == 1 and len(result.stderr.strip().splitlines()) == 1
