import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from models import demo
from models.zoo.textlines import TextLine
from qgraph.errors import DataError
from qgraph.runtime.bench import BenchResult

LINES = [TextLine(np.full((48, width), width, np.uint8), "ab") for width in (16, 24, 40)]


def test_feeds_are_one_file_a_line_and_of_this_run_only(tmp_path):
    demo.write_feeds(LINES, tmp_path / "feeds")
    demo.write_feeds(LINES[:2], tmp_path / "feeds")
    files = sorted((tmp_path / "feeds").iterdir())
    assert len(files) == 2
    for path, line in zip(files, LINES, strict=False):
        with np.load(path) as feeds:
            assert feeds.files == ["x"]
            np.testing.assert_array_equal(feeds["x"], line.tensor())


@pytest.fixture
def recogniser(tmp_path):
    """A recogniser in ONNX: reads `a` at each 8 columns whose mean is above 0, else a blank."""
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[48, 8], strides=[48, 8]),
        helper.make_node("ReduceMean", ["p"], ["m"], axes=[1, 2], keepdims=0),
        helper.make_node("Unsqueeze", ["m", "last"], ["u"]),
        helper.make_node("Neg", ["u"], ["n"]),
        helper.make_node("Concat", ["n", "u", "low"], ["scores"], axis=2),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 48, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2, 3])],
        [
            numpy_helper.from_array(np.array([2], np.int64), "last"),
            numpy_helper.from_array(np.full((1, 2, 1), -9, np.float32), "low"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"character": "a"})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_score_reads_times_and_weighs_both_sides(recogniser, monkeypatch):
    monkeypatch.setattr(demo, "BENCH_S", 0.05)
    pixels = np.zeros((48, 16), np.uint8)
    bright, half = pixels + 255, pixels.copy()
    half[:, 8:] = 255
    lines = [TextLine(bright, "a"), TextLine(half, "aa"), TextLine(pixels, "a")]
    first, second = (demo.backend("onnxruntime-cpu").open(recogniser) for _ in range(2))
    with first, second:
        before, after = demo.score((first, second), (recogniser, recogniser), lines)
    assert before.cer == after.cer == 2 / 4  # reads: a, a, nothing
    assert before.file_bytes == recogniser.stat().st_size
    assert before.timing.name == "original" and after.timing.name == "int8"
    assert before.timing.p50_ms > 0 and after.timing.relative_time > 0


def test_median_line_is_the_one_in_the_middle():
    assert demo.median_line(LINES) is LINES[1]
    assert demo.median_line(LINES[::-1]) is LINES[1]


def timing(p50, p90):
    return BenchResult("n", "some-engine", 10, 1, p50, p50, p90, p90, 1 / p50, 1.0, 1.0, 1.0)


def test_comparison_prints_what_was_measured():
    before = demo.Side(0.125, timing(20.0, 30.0), 20_000_000)
    after = demo.Side(0.25, timing(8.0, 10.0), 5_000_000)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(demo.comparison(before, after, LINES))
    rows = {line.split("│")[1].strip(): line for line in capture.get().splitlines() if "│" in line}
    for row, parts in {
        "character errors": ("12.50%", "25.00%", "+12.50 points"),
        "latency p50": ("20.00 ms", "8.00 ms", "2.50 x as fast"),
        "latency p90": ("30.00 ms", "10.00 ms", "3.00 x as fast"),
        "file": ("20.0 MB", "5.0 MB", "0.25 x as big"),
    }.items():
        cells = [cell.strip() for cell in rows[row].split("│")[2:5]]
        assert cells == list(parts)


@pytest.mark.parametrize(
    "error", [DataError("no network", where="pkg==1"), OSError("disk full")], ids=str
)
def test_failures_are_one_line_and_a_code(monkeypatch, capsys, tmp_path, error):
    def fail():
        raise error

    monkeypatch.setattr(demo.ppocr, "fetch", fail)
    assert demo.main(["--output", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and str(error) in shown
    assert not list(tmp_path.iterdir())
