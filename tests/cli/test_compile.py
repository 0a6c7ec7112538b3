"""compile, explain, and everything that takes the artifact."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from harness import model, run_reference
from llamas import TINY, write_decoder


@pytest.fixture
def artifact(invoke, convnet, samples, cwd):
    result = invoke("compile", convnet, "--data", samples)
    assert result.exit_code == 0, result.stderr
    return cwd / "convnet.int8"


def test_the_summary_says_what_was_done(invoke, convnet, samples, cwd):
    result = invoke("compile", convnet, "--data", samples)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    facts = {line.split("  ")[0]: line for line in lines}
    manifest = json.loads((cwd / "convnet.int8" / "manifest.json").read_text())
    for warning in manifest["warnings"]:
        assert warning in lines[manifest["warnings"].index(warning)]
    for precision, count in manifest["nodes"].items():
        word = "left in float" if precision == "float" else f"in {precision}"
        assert f"{count} {word}" in facts["nodes"]
    assert "SQNR" in facts["accuracy"] and "argmax agrees" in facts["accuracy"]
    assert "held out" in facts["compared on"] and "ms p50" in facts["latency"]
    assert facts["artifact"].split() == ["artifact", "convnet.int8"]
    assert lines[-1] == facts["artifact"]


def test_the_artifact_runs_in_plain_onnxruntime(artifact, convnet, samples):
    feeds = {"image": np.load(samples)["image"]}
    expected = run_reference(onnx.load(convnet), feeds)["logits"]
    found = run_reference(onnx.load(artifact / "model.onnx"), feeds)["logits"]
    noise = np.sum((expected - found) ** 2)
    assert 10 * np.log10(np.sum(expected**2) / noise) > 15
    assert noise > 0  # it is quantized


def test_json_is_the_manifest_and_the_place(invoke_json, convnet, samples, cwd):
    found = invoke_json("compile", convnet, "--data", samples, "-o", "out")
    manifest = json.loads((cwd / "out" / "manifest.json").read_text())
    assert found.pop("artifact") == "out" and found.pop("model") == "out/model.onnx"
    assert found == manifest


def test_quiet_prints_nothing_and_verbose_the_passes(invoke, convnet, samples, cwd):
    args = ("compile", convnet, "--precision", "fp32")
    quiet = invoke("-q", *args)
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
    assert invoke(*args, "-q").stdout == ""
    verbose = invoke(*args, "-v").stdout
    assert "conv_batchnorm" in verbose and "conv_batchnorm" not in invoke(*args).stdout


def test_int8_without_data_says_so_first(invoke, convnet, cwd):
    result = invoke("compile", convnet)
    assert result.exit_code == 0
    first = result.stdout.splitlines()[0]
    assert first.startswith("warning: ") and "int8-dynamic" in first and "--data" in first
    quiet = invoke("compile", convnet, "-q")
    assert quiet.stdout == "" and quiet.stderr.startswith("qgraph: warning: ")
    as_json = invoke("compile", convnet, "--json")
    assert "int8-dynamic" in json.loads(as_json.stdout)["warnings"][0]


def test_excluded_nodes_stay_in_float_and_explain_says_why(invoke, invoke_json, convnet, samples,
                                                           cwd):  # fmt: skip
    result = invoke("compile", convnet, "--data", samples, "--exclude", "conv_3")
    assert result.exit_code == 0, result.stderr
    found = invoke_json("explain", "convnet.int8")
    assert found["nodes"]["conv_3"] == ["float", "excluded by 'conv_3'"]
    only = invoke_json("explain", "convnet.int8", "--node", "conv_*")
    assert set(only["nodes"]) == {name for name in found["nodes"] if name.startswith("conv_")}
    assert "excluded by 'conv_3'" in result.stdout


def test_explain_has_every_node_and_every_float_tensor(invoke_json, invoke, artifact):
    found = invoke_json("explain", artifact)
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert len(found["nodes"]) == sum(manifest["nodes"].values())
    assert all(len(entry) == 2 and all(entry) for entry in found["nodes"].values())
    assert found["float"]["logits"] == "graph output" and all(found["float"].values())
    shown = invoke("explain", artifact).stdout
    assert all(name in shown for name in (*found["nodes"], *found["float"]))
    nothing = invoke("explain", artifact, "--node", "nothing*")
    assert nothing.exit_code == 0 and "nothing is called" in nothing.stderr
    assert "tensors" not in nothing.stdout  # no table without rows


def test_the_summary_of_a_decoder(invoke, tmp_path):
    write_decoder(tmp_path, kv=True)
    ids = np.random.default_rng(0).integers(0, TINY.vocabulary, (8, 12))
    np.savez(tmp_path / "windows.npz", input_ids=ids)
    options = (
        "--set",
        "weight_only.min_elements=1",
        "--group",
        16,
        "--data",
        tmp_path / "windows.npz",
    )
    command = ("compile", tmp_path / "m.onnx", "--precision", "int4", "-o", tmp_path / "out")
    result = invoke(*command, *options)
    assert result.exit_code == 0, result.stderr
    assert "Latency of one token behind 63, measured in turn" in result.stdout
    assert re.search(
        r"latency .* in (openvino|onnxruntime-cpu)(, its own operators)?, one token behind 63",
        result.stdout,
    )
    assert "1 x it makes a graph output; weight_only.head=true quantizes it too" in result.stdout


def test_explain_of_what_is_no_artifact(invoke, artifact, convnet):
    result = invoke("explain", convnet)
    assert result.exit_code == 1 and "no artifact" in result.stderr
    for content in ("{", "[]", '{"nodes": 1}', "{}"):
        (artifact / "explain.json").write_text(content)
        result = invoke("explain", artifact)
        assert result.exit_code == 1 and "explain.json is damaged" in result.stderr
    (artifact / "explain.json").unlink()
    assert "explain.json is missing" in invoke("explain", artifact).stderr


def test_the_other_commands_take_artifacts(invoke_json, artifact, convnet, samples):
    engine = json.loads((artifact / "manifest.json").read_text())["engine"]["backend"]
    inspected = invoke_json("inspect", artifact)
    assert inspected["artifact"]["precision"] == "int8" and inspected["quantized"]
    ran = invoke_json("run", artifact, "--data", samples)
    assert (ran["engine"], ran["samples"]) == (engine, 20)
    differs = invoke_json("diff", convnet, artifact)
    assert "BatchNormalization" in {each["kind"] for each in differs["nodes"]["removed"]}
    benched = invoke_json("bench", artifact, "--vs", convnet, "--seconds", "0.1", "--no-memory")
    assert benched["results"][0]["engine"] == engine


def test_settings_reach_the_passes(invoke, invoke_json, convnet, samples, cwd):
    args = ("compile", convnet, "--data", samples)
    found = invoke_json(*args, "--set", "calibrate.observer=minmax")
    stage = next(s for s in found["stages"] if s["name"] == "calibrate")
    assert stage["options"]["observer"] == "minmax"
    found = invoke_json(*args, "--memory", "64", "-o", "budgeted")
    budgets = {s["name"]: s["options"].get("memory_mb") for s in found["stages"]}
    assert budgets["calibrate"] == budgets["adaround"] == 64
    assert invoke(*args, "--memory", "0", "-o", "other").exit_code == 2
    for setting, what in [
        ("calibrate.observer", "pass.option=value"),
        ("calibrat.observer=minmax", "did you mean 'calibrate'?"),
        ("calibrate.observr=minmax", "did you mean 'observer'?"),
        ("plan.keep_first=maybe", "plan.keep_first"),
    ]:
        result = invoke(*args, "--set", setting, "-o", "other")
        assert result.exit_code == 2 and what in result.stderr, result.stderr
        assert result.stderr.count("\n") == 1 and not (cwd / "other").exists()


@pytest.mark.parametrize(
    ("option", "name", "near"),
    [
        ("--target", "cpuu", "'cpu'"),
        ("--precision", "int9", "'int8'"),
        ("--recipe", "imagenet-means", "'imagenet-mean'"),
        ("--print-after", "insert-qdq", "'insert_qdq'"),
        ("--stop-after", "calibrte", "'calibrate'"),
        ("--verify", "numerik", "'numeric'"),
    ],
)
def test_unknown_names_suggest_the_nearest(invoke, convnet, cwd, option, name, near):
    result = invoke("compile", convnet, option, name)
    assert result.exit_code == 2 and f"did you mean {near}?" in result.stderr
    assert not list(cwd.iterdir())


def test_a_floor_that_is_missed_keeps_the_artifact_marked(invoke, convnet, samples, cwd):
    (cwd / "strict.toml").write_text('extends = "default"\n[verify]\nmin_sqnr_db = 90.0\n')
    result = invoke("compile", convnet, "--data", samples, "--recipe", "strict.toml")
    assert result.exit_code == 1
    assert result.stderr.startswith("qgraph: error: convnet.int8: ")
    assert result.stderr.count("\n") == 1
    assert "FAILED" in result.stdout and "90" in result.stdout
    manifest = json.loads((cwd / "convnet.int8" / "manifest.json").read_text())
    assert manifest["accuracy"]["passed"] is False
    as_json = invoke("compile", convnet, "--data", samples, "--recipe", "strict.toml", "--json")
    assert json.loads(as_json.stdout)["error"]["where"] == "convnet.int8"


def test_an_output_folder_in_use_is_left_alone(invoke, convnet, cwd):
    (cwd / "thesis").mkdir()
    (cwd / "thesis" / "chapter").write_text("one")
    result = invoke("compile", convnet, "-o", "thesis")
    assert result.exit_code == 1 and "in use" in result.stderr
    assert [p.name for p in (cwd / "thesis").iterdir()] == ["chapter"]
    result = invoke("compile", convnet, "-o", "thesis/chapter")
    assert result.exit_code == 1 and (cwd / "thesis" / "chapter").read_text() == "one"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-dynamic"])
def test_numeric_verification_of_the_real_passes(invoke, convnet, samples, cwd, precision):
    args = ("--data", samples, "--precision", precision, "--verify", "numeric", "-q")
    result = invoke("compile", convnet, *args)
    assert result.exit_code == 0, result.stderr
    assert (cwd / f"convnet.{precision}" / "model.onnx").is_file()


def test_numeric_verification_runs_on_the_data_if_there_is_any(invoke, cwd):
    """Random values give other axes their usual sizes, which a model need not take."""
    text = "net (float[n, k] x) => (float[n, 2] y) { a = Relu(x)\n y = MatMul(a, w) }"
    onnx.save(model(text, {"w": np.ones((7, 2), np.float32)}), cwd / "m.onnx")
    np.savez(cwd / "d.npz", x=np.ones((4, 7), np.float32))
    args = ("compile", "m.onnx", "--precision", "fp32", "--verify", "numeric")
    result = invoke(*args)
    assert result.exit_code == 1 and "can't be run on random values" in result.stderr
    assert "pass --data" in result.stderr and result.stderr.count("\n") == 1
    assert invoke(*args, "--data", "d.npz").exit_code == 0


def test_verify_names_the_pass_that_breaks_the_model(invoke, convnet, cwd, monkeypatch):
    from qgraph.passes.fusions.conv_batchnorm import ConvBatchNorm

    plain = ConvBatchNorm.run

    def wrong(self, graph, context):
        report = plain(self, graph, context)
        for node in graph.nodes("Relu"):
            node.op_type = "Sigmoid"
        return report

    monkeypatch.setattr(ConvBatchNorm, "run", wrong)
    result = invoke("compile", convnet, "--precision", "fp32", "--verify", "numeric")
    assert result.exit_code == 1 and not list(cwd.iterdir())
    assert "pass 'conv_batchnorm' broke the model: output 'logits'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_debugging_options_together(invoke, convnet, samples, cwd):
    result = invoke(
        "compile", convnet, "--data", samples, "--dump-ir", "ir", "--print-after", "insert_qdq",
        "--time-passes", "--verify", "onnx", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    stages = [s["name"] for s in json.loads(result.stdout)["stages"]]
    dumps = sorted(p.name for p in (cwd / "ir").iterdir())
    assert dumps == [f"{i:03}_{name}.onnx" for i, name in enumerate(stages, 1)]
    for dump in (cwd / "ir").iterdir():
        onnx.checker.check_model(str(dump))
    assert "--- after insert_qdq ---" in result.stderr and "QuantizeLinear(" in result.stderr
    assert "all passes" in result.stderr and "100.0%" in result.stderr


def test_stop_after_writes_the_graph_and_no_artifact(invoke, invoke_json, convnet, cwd):
    result = invoke("compile", convnet, "--precision", "fp32", "--stop-after", "conv_batchnorm")
    assert result.exit_code == 0, result.stderr
    (file,) = cwd.iterdir()
    assert file.name == "convnet.after-conv_batchnorm.onnx" and file.name in result.stdout
    assert "BatchNormalization" not in {n.op_type for n in onnx.load(file).graph.node}
    found = invoke_json("compile", convnet, "--stop-after", "normalize", "-o", "n.onnx")
    assert found["model"] == "n.onnx" and found["stopped_after"] == "normalize"
    assert "BatchNormalization" in {n.op_type for n in onnx.load(cwd / "n.onnx").graph.node}


def test_stop_after_a_pass_that_does_not_run(invoke, convnet, cwd):
    args = ("compile", convnet, "--precision", "fp32", "--stop-after", "insert_qdq")
    result = invoke(*args)
    assert result.exit_code == 2 and "does not run" in result.stderr
    assert not list(cwd.iterdir())
    result = invoke(*args, "-o", "folder")
    assert result.exit_code == 2 and ".onnx" in result.stderr


def test_random_data_is_marked(invoke, convnet, cwd):
    result = invoke("compile", convnet, "--data", "random", "--samples", "8")
    assert result.exit_code == 0, result.stderr
    assert "random data" in result.stdout.splitlines()[0]
    assert json.loads((cwd / "convnet.int8" / "manifest.json").read_text())["random_calibration"]


def test_an_artifact_is_compiled_again_in_place(invoke, convnet, samples, cwd):
    for data in (samples, "random"):
        result = invoke("compile", convnet, "--data", data, "--samples", "10", "-o", "out")
        assert result.exit_code == 0, result.stderr
    assert json.loads((cwd / "out" / "manifest.json").read_text())["data"]["kind"] == "random"
    assert [p.name for p in cwd.iterdir()] == ["out"]


def test_a_quantized_model_is_left_intact(invoke, artifact, cwd):
    result = invoke("compile", artifact / "model.onnx", "-o", "again")
    assert result.exit_code == 0, result.stderr
    assert "already quantized" in result.stdout.splitlines()[0]


@pytest.mark.parametrize("dim", [9, None])
def test_wrong_data_leaves_nothing_behind(invoke, convnet, cwd, dim):
    if dim:
        np.savez(cwd / "bad.npz", image=np.zeros((4, 3, 8, dim), np.float32))
    result = invoke("compile", convnet, "--data", "bad.npz")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert {p.name for p in cwd.iterdir()} <= {"bad.npz"}


def test_ctrl_c_leaves_nothing_behind(start, convnet, samples, cwd):
    (cwd / "slow.py").write_text(
        "import sys, time, numpy as np\n"
        "def data():\n"
        "    for _ in range(1000):\n"
        "        print('sample', file=sys.stderr, flush=True)\n"
        "        time.sleep(0.05)\n"
        "        yield {'image': np.zeros((1, 3, 8, 8), np.float32)}\n"
    )
    process = start("compile", convnet, "--data", "slow:data", cwd=cwd, env={"PYTHONPATH": "."})
    for _ in range(5):
        assert process.stderr.readline() == "sample\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and out == ""
    assert err.splitlines()[-1] == "qgraph: interrupted" and "Traceback" not in err
    assert {p.name for p in cwd.iterdir()} <= {"slow.py", "__pycache__"}


SHORT = (
    "import sys, qgraph.engine_choice as choice\nfrom qgraph.cli import main\n"
    "choice.BUDGET_S = 0.1\nsys.argv = ['qgraph', *sys.argv[1:]]\nmain()"
)


def test_progress_is_drawn_on_terminals_only(convnet, cwd):
    command = [sys.executable, "-c", SHORT, "compile", str(convnet), "-o", "a"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    assert done.stderr == "" and "int8 needs" in done.stdout
    master, slave = pty.openpty()
    process = subprocess.Popen(command, cwd=cwd, stderr=slave, stdout=subprocess.PIPE, text=True)
    os.close(slave)
    drawn = b""
    with contextlib.suppress(OSError):  # how Linux reports the end of a terminal
        while part := os.read(master, 4096):
            drawn += part
    out = process.stdout.read()
    assert process.wait(timeout=60) == 0
    assert b"measuring engines" in drawn and b"\x1b[" in drawn
    # Shown at once to who watches, and in the summary for who reads stdout.
    assert b"qgraph: warning: int8 needs" in drawn and "int8 needs" in out


def test_many_outputs_are_summed_up(invoke, cwd):
    # As many as a decoder with its caches has.
    outputs = ", ".join(f"float[n, 4] y{i}" for i in range(9))
    body = " ".join(f"y{i} = Mul(x, s{i})" for i in range(9))
    scales = {f"s{i}": np.float32(1.1 + i) for i in range(9)}
    onnx.save(model(f"g (float[n, 4] x) => ({outputs}) {{ {body} }}", scales), "m.onnx")
    (cwd / "strict.toml").write_text('extends = "default"\n[verify]\nmin_sqnr_db = 500.0\n')
    np.savez("d.npz", x=np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32))
    options = ["--precision", "fp16", "--recipe", "strict.toml", "--data", "d.npz"]
    result = invoke("compile", "m.onnx", *options)
    assert result.exit_code == 1
    assert result.stderr.count("is below 500 dB") == 3 and "; and 6 more; " in result.stderr
    rows = [line for line in result.stdout.splitlines() if "SQNR" in line and "FAILED" not in line]
    assert len(rows) == 2
    assert rows[0].startswith("accuracy y0 ") and rows[1].startswith("of 8 others")
    accuracy = json.loads((cwd / "m.fp16" / "manifest.json").read_text())["accuracy"]
    worst = min(accuracy["outputs"][1:], key=lambda output: output["sqnr_db"])
    assert f"worst in {worst['name']}: SQNR {worst['sqnr_db']:.1f} dB" in rows[1]
