import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from benchmarks import accuracy, calibration
from benchmarks.peers import environments, scoring, table
from benchmarks.peers.__main__ import RUN, chosen, samples
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.recipes import run
from benchmarks.peers.recipes.mixed_neural_compressor import ended
from benchmarks.peers.table import Row
from qgraph.data.inputs import Sample
from qgraph.metrics import metric


def row(package: str, recipe: str, **numbers: object) -> Row:
    usual = {"sqnr": 20.0, "score": "top1 0.7500", "speed": 2.0, "file_mb": 4.0}
    costs = {"seconds": 10.0, "cpu_seconds": 9.0, "peak_mb": 500.0}
    return Row(package, recipe, **{**usual, **costs, **numbers})  # type: ignore[arg-type]


def test_ahead_names_what_is_better_and_nothing_else() -> None:
    rows = [
        row("a 1", "x", sqnr=21.0, seconds=30.0),
        row("b 2", "y", peak_mb=400.0, speed=0.5, score="top1 0.7600"),
        row("c 3", "equal"),
        Row("d 4", "failed", note="no such operator"),
        row("qgraph", "best", sqnr=30.0),
        row("qgraph", "default"),
    ]
    assert table.ahead(rows) == [
        "a 1, x is ahead in: SQNR dB 21.00",
        "b 2, y is ahead in: score top1 0.7600, peak MB 400",
    ]
    assert table.ahead(rows, "best") == [
        "b 2, y is ahead in: score top1 0.7600, peak MB 400",
    ]
    assert table.ahead(rows, "absent") == []


def test_a_lower_error_rate_is_better() -> None:
    ours = row("qgraph", "default", score="cer 0.0200")
    assert table.ahead([row("a", "x", score="cer 0.0100"), ours]) == [
        "a, x is ahead in: score cer 0.0100"
    ]
    assert table.ahead([row("a", "x", score="cer 0.0300"), ours]) == []


def test_markdown_has_a_cell_for_every_head() -> None:
    rows = [row("a", "x", note="left | right"), Row("b", "y", note="failed")]
    text = table.markdown(rows, "top1 0.7778").splitlines()
    assert {line.count("|") for line in text} == {len(table.HEADS) + 1}
    assert "score (fp32 top1 0.7778)" in text[0]


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    names=st.lists(st.sampled_from(["x", "a/b", "input:0", "7"]), min_size=1, unique=True),
)
def test_samples_of_any_shape_survive_the_file(
    shapes: list[int], names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    feeds = [
        {name: np.full((1, size), i, np.int64) for name in names} for i, size in enumerate(shapes)
    ]
    path = tmp_path_factory.mktemp("feeds") / "feeds.npz"
    run.save(feeds, path)
    got = run.load(path)
    assert [list(each) for each in got] == [list(each) for each in feeds]
    for want, have in zip(feeds, got, strict=True):
        for name in names:
            np.testing.assert_array_equal(have[name], want[name])
            assert have[name].dtype == want[name].dtype


def test_rows_are_chosen_in_order_and_unknown_names_refused() -> None:
    found = chosen("nncf:mixed,onnxruntime:dynamic,modelopt", "default,best")
    assert [(peer.name, recipes) for peer, recipes in found] == [
        ("nncf", ("mixed",)),
        ("onnxruntime", ("dynamic",)),
        ("modelopt", ("max", "entropy")),
        ("qgraph", ("default", "best")),
    ]
    with pytest.raises(SystemExit, match="no peer nonsense; there are: onnxruntime"):
        chosen("nonsense", "")
    with pytest.raises(SystemExit, match="nncf has: default"):
        chosen("nncf:nonsense", "")


@pytest.mark.parametrize("name", [*PEERS, "qgraph"])
def test_every_peer_has_its_script(name: str) -> None:
    assert RUN.with_name(f"with_{name}.py").is_file()


def test_a_failed_install_says_why_and_leaves_no_ready_environment(tmp_path: Path) -> None:
    with pytest.raises(environments.InstallError, match="^no such distribution$"):
        environments._call(
            [sys.executable, "-c", "import sys; sys.exit('x\\nno such distribution')"]
        )
    peer = Peer("broken", (), (), ("x",))
    # venv itself fails: a file is where the cache folder should be.
    (tmp_path / "cache").write_text("")
    with pytest.raises(environments.InstallError):
        environments.environment(peer, tmp_path / "cache")


def scaled(path: Path, factor: float, extra: bool = False) -> Path:
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    if extra:
        nodes.append(helper.make_node("Neg", ["y"], ["left"]))
        outputs.append(helper.make_tensor_value_info("left", TensorProto.FLOAT, ["n", 4]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        outputs,
        [helper.make_tensor("w", TensorProto.FLOAT, [1], [factor])],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def test_the_scorer_is_right_and_looks_past_outputs_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "SECONDS", 0.02)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    feeds = samples({"x": x})
    labels = x.argmax(1)
    labels[:3] = (labels[:3] + 1) % 4
    plain = scaled(tmp_path / "plain.onnx", 1.0)
    evaluation = accuracy.labelled({"x": x}, labels, 4)
    task = accuracy.Task("t", plain, feeds, evaluation, metric("top1"))
    reference = scoring.Reference(task)
    file = scaled(tmp_path / "q.onnx", 1.01, extra=True)
    got = reference.complete(Row("p", "r"), file)
    assert got.sqnr == pytest.approx(40.0, abs=1e-3)
    assert got.score == reference.score == "top1 0.5000"
    assert got.speed is not None and got.speed > 0
    assert got.file_mb == file.stat().st_size / 1e6


def test_a_file_that_does_not_run_gets_a_note(tmp_path: Path) -> None:
    feeds = samples({"x": np.ones((2, 4), np.float32)})
    evaluation = [Sample(each, {}) for each in feeds]
    task = accuracy.Task("t", scaled(tmp_path / "p.onnx", 1.0), feeds, evaluation, None)
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    got = scoring.Reference(task).complete(Row("p", "r"), tmp_path / "bad.onnx")
    assert got.sqnr is None and got.note.startswith("onnxruntime: ")


def test_onnxruntime_recipe_is_that_of_the_calibration_benchmark(tmp_path: Path) -> None:
    model = accuracy.ROOT / "models" / "digits" / "digits_cnn.onnx"
    feeds = next(iter(accuracy.tasks(["digits_cnn"]))).calibration[:16]
    run.save(feeds, tmp_path / "feeds.npz")
    paths = [model, tmp_path / "feeds.npz", tmp_path / "a.onnx"]
    command = [sys.executable, RUN, "onnxruntime", "minmax", *paths]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    took = json.loads(done.stdout.splitlines()[-1])
    assert took["seconds"] > 0 and took["peak_mb"] > 10
    calibration._onnxruntime("MinMax", model, feeds, tmp_path / "b.onnx")
    assert onnx.load(tmp_path / "a.onnx").graph == onnx.load(tmp_path / "b.onnx").graph


def test_sqnr_is_of_the_last_output_of_every_side() -> None:
    exact = [{f"{side}.{name}": np.ones(2) for side in "ab" for name in ("states", "embedding")}]
    got = [{**exact[0], "a.states": np.zeros(2), "b.embedding": np.array([1.1, 1.0])}]
    sides = ("a.", "b.")
    assert accuracy.sqnr(exact, got, sides) == pytest.approx(10 * np.log10(4 / 0.01))


def test_a_trial_that_was_good_enough_is_said_although_the_tool_returned_none() -> None:
    found = ended([0.0265, 0.0015, 0.034], 0.003)
    assert found == "trial 2 of 3 within 0.003; the tool lost it when time was over"
    assert ended([0.003], 0.003).startswith("trial 1 of 1 within")
    assert ended([0.0265, 0.0143], 0.003).startswith("no trial of 2 within 0.003")
    assert ended([], 0.003).startswith("no trial of 0")
