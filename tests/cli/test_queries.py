"""inspect, diff, passes, targets, recipes: what only reads."""

import json
import subprocess

import numpy as np
import onnx
import pytest
from harness import model

from qgraph.passes import all_passes


def test_inspect_counts(invoke_json, convnet):
    found = invoke_json("inspect", convnet)
    assert found["operators"] == {
        "Conv": 2, "Relu": 2, "BatchNormalization": 1, "Add": 1, "GlobalAveragePool": 1,
        "Flatten": 1, "Gemm": 1,
    }  # fmt: skip
    tensors = onnx.load(convnet).graph.initializer
    assert found["parameters"]["count"] == sum(int(np.prod(t.dims)) for t in tensors)
    assert found["parameters"]["by_type"] == {"float32": found["parameters"]["count"]}
    assert found["parameters"]["bytes"] == 4 * found["parameters"]["count"]
    assert found["opsets"] == {"ai.onnx": 21} and found["quantized"] == {}
    assert found["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["n", 3, 8, 8]}]
    assert found["dynamic_axes"] == {"n": ["image[0]", "logits[0]"]}


def test_inspect_tells_what_fusing_and_quantizing_would_do(invoke_json, convnet):
    found = invoke_json("inspect", convnet)
    done = {stage["pass"]: stage for stage in found["rewrites"]}
    assert done["conv_batchnorm"]["changed"] == 1
    # Two Conv and a Gemm, the first two with what follows them.
    assert done["units"]["changed"] == 0 and len(done["units"]["details"]) == 3
    plan = found["targets"]["cpu"]
    assert plan["quantized"]["Conv"] == 2 and "int8" in plan["precisions"]
    every = sum(plan["quantized"].values())
    every += sum(n for reasons in plan["float"].values() for n in reasons.values())
    assert every == 8  # the BatchNormalization is gone


def test_inspect_gives_reasons_for_refusals(invoke_json, invoke, tmp_path):
    """A BatchNormalization whose Conv has a second reader can't be folded."""
    text = """two (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y, float[1, 2, 4, 4] z) {
      c = Conv<kernel_shape = [1, 1]>(x, w)
      y = LayerNormalization<axis = 1>(c, s)
      z = Softmax(c)
    }"""
    arrays = {"w": np.ones((2, 2, 1, 1), np.float32), "s": np.ones((2, 4, 4), np.float32)}
    onnx.save(model(text, arrays), tmp_path / "m.onnx")
    left = invoke_json("inspect", tmp_path / "m.onnx")["targets"]["cpu"]["float"]
    assert set(left) >= {"LayerNormalization", "Softmax"}
    assert all(reason for reasons in left.values() for reason in reasons)
    shown = invoke("inspect", tmp_path / "m.onnx").stdout
    assert all(reason in shown for reasons in left.values() for reason in reasons)


def test_inspect_counts_nodes_in_bodies(invoke_json, tmp_path):
    text = """ifs (bool c, float[4] x) => (float[4] y) {
      y = If (c) <then_branch = t () => (float[4] p) { p = Neg(x) },
                  else_branch = e () => (float[4] q) { q = Abs(x) }>
    }"""
    onnx.save(model(text), tmp_path / "m.onnx")
    found = invoke_json("inspect", tmp_path / "m.onnx")
    assert found["nodes"] == 3 and found["operators"] == {"If": 1, "Neg": 1, "Abs": 1}
    left = found["targets"]["cpu"]["float"]
    assert left["Neg"] == {"inside the body of an If, Loop or Scan": 1} and set(left) == {
        "If", "Neg", "Abs"
    }  # fmt: skip


def test_cells_with_several_reasons_have_several_lines(invoke, tmp_path):
    text = """net (float[1, 3, 4, 4] x, float[4] z) => (float[1, 3, 4, 4] y, float[4] v) {
      a = Add(x, w)
      y = Sin(a)
      u = Relu(z)
      v = Add(u, z)
    }"""
    onnx.save(model(text, {"w": np.ones((1, 3, 1, 1), np.float32)}), tmp_path / "m.onnx")
    lines = invoke("inspect", tmp_path / "m.onnx").stdout.splitlines()
    table = next(i for i in range(len(lines)) if lines[i].startswith("Target cpu"))
    first = next(i for i in range(table, len(lines)) if lines[i].startswith("Add  "))
    reasons = [lines[first].partition("1 x ")[2].strip(), lines[first + 1].strip()]
    assert reasons[0] and reasons[1].startswith("1 x ") and not lines[first + 1][0].strip()


def test_inspect_names_a_few_of_an_axis_many_places(invoke, tmp_path):
    text = """g (float[n] a, float[n] b, float[n] c, float[n] d, float[n] e) => (float[n] y) {
        y = Sum(a, b, c, d, e)
    }"""
    onnx.save(model(text), tmp_path / "m.onnx")
    shown = invoke("inspect", tmp_path / "m.onnx").stdout
    assert "n (a[0], b[0], c[0], d[0], and 2 more)" in shown


def test_inspect_changes_no_file(invoke, convnet):
    before = convnet.read_bytes()
    invoke("inspect", convnet)
    assert convnet.read_bytes() == before and [p.name for p in convnet.parent.iterdir()] == [
        convnet.name
    ]


def test_inspect_recognises_quantized_models_and_custom_operators(invoke_json, invoke, tmp_path):
    text = """q (float[4] x) => (float[4] y) {
      a = QuantizeLinear(x, s, z)
      y = DequantizeLinear(a, s, z)
    }"""
    proto = model(text, {"s": np.float32(0.1), "z": np.uint8(3)})
    onnx.save(proto, tmp_path / "q.onnx")
    found = invoke_json("inspect", tmp_path / "q.onnx")
    assert found["quantized"] == {"QuantizeLinear": 1, "DequantizeLinear": 1}
    assert (
        found["targets"] == {}
        and "leaves it intact" in invoke("inspect", tmp_path / "q.onnx").stdout
    )

    node = onnx.helper.make_node("Magic", ["x"], ["y"], domain="my.own")
    info = [onnx.helper.make_tensor_value_info(n, 1, [2]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", info[:1], info[1:])
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("my.own", 1)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "c.onnx"
    )
    assert invoke_json("inspect", tmp_path / "c.onnx")["custom_operators"] == {"my.own.Magic": 1}


def test_inspect_escapes_names_from_the_model(invoke, tmp_path):
    proto = model("net (float[4] x) => (float[4] y) { y = Relu(x) }")
    proto.metadata_props.add(key="[bold]k", value="v\x1b[2J[/red]")
    onnx.save(proto, tmp_path / "m.onnx")
    result = invoke("inspect", tmp_path / "m.onnx")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout and "v\\x1b[2J[/red]" in result.stdout
    assert "metadata [bold]k" in result.stdout


def _damaged(folder):
    whole = model("net (float[4] x) => (float[4] y) { y = Relu(x) }").SerializeToString()
    (folder / "truncated").write_bytes(whole[: len(whole) // 2])
    (folder / "empty").write_bytes(b"")
    (folder / "text").write_text("hello, I am no model")
    (folder / "folder").mkdir()
    return [folder / name for name in ("truncated", "empty", "text", "folder", "missing")]


@pytest.mark.parametrize("command", ["inspect", "diff", "run", "bench", "compile", "explain"])
def test_bad_models_are_one_line_and_1(invoke, cwd, command):
    extra = {"diff": [cwd / "missing"], "run": ["--data", "random"], "bench": ["--seconds", "0.1"]}
    for bad in _damaged(cwd):
        result = invoke(command, bad, *extra.get(command, []))
        assert result.exit_code == 1, (bad, result.stderr)
        errors = [line for line in result.stderr.splitlines() if "error:" in line]
        assert len(errors) == 1 and bad.name in errors[0], (bad, result.stderr)
        assert "bug in qgraph" not in errors[0] and not result.stdout
    left = {path.name for path in cwd.iterdir()}
    assert left == {"truncated", "empty", "text", "folder"}


def test_diff_of_files(invoke, invoke_json, convnet, tmp_path):
    proto = onnx.load(convnet)
    proto.graph.node[0].attribute[0].ints[0] = 0
    proto.graph.node[0].attribute[0].ints[2] = 2
    onnx.save(proto, tmp_path / "other.onnx")
    found = invoke_json("diff", convnet, tmp_path / "other.onnx")
    assert found["identical"] is False
    change = "attribute pads: (1, 1, 1, 1) -> (0, 1, 2, 1)"
    assert found["nodes"]["changed"] == [{"name": "conv_0", "kind": "Conv", "changes": [change]}]
    shown = invoke("diff", convnet, tmp_path / "other.onnx")
    assert shown.exit_code == 0 and "0 added, 0 removed, 1 changed, 8 the same" in shown.stdout
    assert invoke("diff", convnet, convnet).stdout == "no difference\n"


def test_diff_lists_few_unless_verbose(invoke, tmp_path):
    lines = "\n".join(f"v{i + 1} = Neg(v{i})" for i in range(30))
    onnx.save(model(f"a (float[4] v0) => (float[4] v30) {{ {lines} }}"), tmp_path / "a.onnx")
    onnx.save(model("b (float[4] v0) => (float[4] v30) { v30 = Abs(v0) }"), tmp_path / "b.onnx")
    short = invoke("diff", tmp_path / "a.onnx", tmp_path / "b.onnx").stdout
    full = invoke("diff", tmp_path / "a.onnx", tmp_path / "b.onnx", "-v").stdout
    assert "and 20 more" in short and "removed: 30 Neg" in short
    assert "more" not in full and full.count("= Neg(") == 30


def test_every_pass_is_listed_with_its_options(invoke_json, invoke):
    listed = {each["name"]: each for each in invoke_json("passes")}
    assert list(listed) == list(all_passes())
    for name, each in all_passes().items():
        assert listed[name]["numerics"] == each.numerics
        assert set(listed[name]["options"]) == set(each().options())
        page = invoke("passes", name)
        assert page.exit_code == 0 and each.__doc__.strip().splitlines()[0] in page.stdout
        for option in listed[name]["options"]:
            assert f"--set {name}.{option}=" in page.stdout


def test_unknown_names_suggest_the_nearest(invoke):
    for args, near in [
        (("passes", "calibrat"), "'calibrate'"),
        (("recipes", "defalt"), "'default'"),
    ]:
        result = invoke(*args)
        assert result.exit_code == 2 and f"did you mean {near}?" in result.stderr


def test_targets_say_which_engines_run_here(invoke_json, invoke):
    (cpu,) = [each for each in invoke_json("targets") if each["name"] == "cpu"]
    engines = {each["name"]: each for each in cpu["engines"]}
    assert engines["onnxruntime-cpu"]["usable"] is True
    assert all(each["usable"] or each["reason"] for each in engines.values())
    assert "Conv" in invoke("targets", "-v").stdout


def test_recipes_are_listed_shown_and_checked(invoke_json, invoke, tmp_path):
    listed = {each["name"] for each in invoke_json("recipes")}
    assert {"default", "imagenet-mean"} <= listed
    assert invoke_json("recipes", "imagenet-mean")["images"]["mean"]
    (tmp_path / "mine.toml").write_text('precison = "int8"\n')
    result = invoke("recipes", tmp_path / "mine.toml")
    assert result.exit_code == 2 and "did you mean 'precision'?" in result.stderr


def test_tables_are_not_cut_where_a_program_reads(start):
    process = start("passes", env={"COLUMNS": "40"})
    out, _ = process.communicate(timeout=20)
    names = {line.split()[0] for line in out.splitlines()[1:]}
    assert names == set(all_passes()) and "…" not in out


def test_json_holds_no_escape_codes_on_any_terminal(start, convnet):
    out, err = start("inspect", convnet, "--json", env={"FORCE_COLOR": "1"}).communicate(timeout=30)
    assert json.loads(out)["nodes"] == 9 and err == ""


def test_the_installed_script(convnet):
    import shutil
    import sys
    from pathlib import Path

    script = Path(sys.executable).with_name("qgraph")
    if not script.exists() and shutil.which("qgraph") is None:
        pytest.skip("qgraph is not installed as a script")
    done = subprocess.run(
        [str(script), "-q", "diff", convnet, convnet], capture_output=True, text=True, check=True
    )
    assert done.stdout == "no difference\n"
