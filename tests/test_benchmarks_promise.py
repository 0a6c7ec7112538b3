"""benchmarks/promise: its data in parts, and files of other tools beside ours."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from benchmarks.accuracy import ROOT
from benchmarks.promise import __main__ as command
from benchmarks.promise import beside, data, images
from benchmarks.promise.data import Work, works
from qgraph.errors import DataError
from qgraph.metrics import metric

NAMES = [f"n{number:08}_thing.JPEG" for number in range(0, 7000, 7)]


def digits() -> Work:
    (found,) = works(["digits_cnn"])
    return found


def small(work: Work, folder: Path) -> Work:
    return Work(work.name, folder / "none.onnx", work.metric, work.search[:3], work.kept[:20])


def test_rows_are_on_one_side_only_and_one_sample_each() -> None:
    work = digits()
    assert len(work.kept) == 300
    kept = {sample.feeds["image"].tobytes() for sample in work.kept}
    assert not kept & {row["image"].tobytes() for row in work.search}
    assert {len(sample.labels["label"]) for sample in work.kept} == {1}
    assert set(work.feeds[0]) == {"image"}


def test_every_third_photograph_is_kept_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (10, 224, 224, 3)).astype(np.uint8)
    np.savez(file, x=pixels, y=np.arange(10) + 5)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mobilenet_v2.onnx").touch()
    monkeypatch.setenv("QGRAPH_SHARED", str(tmp_path))
    (work,) = works(["mobilenet_v2"], images=file)
    assert [int(sample.labels["label"][0]) for sample in work.kept] == [7, 10, 13]
    assert [int(row["label"][0]) for row in work.search] == [5, 6, 8, 9, 11, 12, 14]
    row = work.search[2]["input"]
    assert row.shape == (1, 3, 224, 224) and row.dtype == np.float32
    expected = (pixels[3, 1, 2, 0] / 255 - 0.485) / 0.229
    assert row[0, 0, 1, 2] == pytest.approx(expected, abs=1e-6)


def test_lines_share_no_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from PIL import ImageFont

    from models.zoo import fonts, ppocr

    monkeypatch.setattr(ppocr, "fetch", lambda: tmp_path / "none.onnx")
    monkeypatch.setattr(fonts, "load_fonts", lambda: [ImageFont.load_default])
    monkeypatch.setattr(data, "metric", lambda name: metric("top1"))
    (work,) = works(["ppocrv6_rec_small"], lines=12)
    searched = [str(row["text"][0]) for row in work.search]
    kept = [str(sample.labels["text"][0]) for sample in work.kept]
    assert (len(set(searched)), len(set(kept))) == (12, 6)
    assert not set(searched) & set(kept)
    assert len({row["x"].shape for row in work.search}) > 1


def test_classes_are_numbered_in_the_order_of_their_identifiers(tmp_path: Path) -> None:
    names = sorted([*NAMES, "n00000007_another.JPEG"])
    found = images.classes(names, tmp_path)
    assert found[:4].tolist() == [0, 1, 1, 2]
    assert found[-1] == 999
    with pytest.raises(DataError, match="999 classes, not of 1000"):
        images.classes(NAMES[1:], tmp_path)


def test_a_folder_and_its_npz_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CLASSES", 2)
    wide = np.zeros((300, 600, 3), np.uint8)
    wide[:, 200:400] = 255
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.fromarray(wide).save(folder / "n00000001_wide.JPEG", quality=100)
    Image.new("L", (224, 400), 9).save(folder / "n00000002_tall.JPEG")
    (folder / "README.md").write_text("no image")
    images.write_images(folder, tmp_path / "images.npz")
    for path in (folder, tmp_path / "images.npz"):
        pixels, labels = images.read_images(path)
        assert pixels.shape == (2, 224, 224, 3) and labels.tolist() == [0, 1]
        assert set(np.unique(pixels[1])) == {9}
        # 256 x 512, of which columns 144 to 367 are left: white from 170.7 to 341.3.
        assert pixels[0, 100, [20, 32, 192, 202], 0].tolist() == pytest.approx(
            [0, 255, 255, 0], abs=9
        )


@pytest.mark.parametrize("arrays", [{"x": np.zeros((2, 8, 8, 3), np.uint8)}, {}])
def test_other_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "images.npz", y=np.zeros(2, int), **arrays)
    with pytest.raises(DataError, match=r"images.npz"):
        images.read_images(tmp_path / "images.npz")


def test_files_of_others_are_opened_and_broken_ones_are_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "digits_cnn"
    folder.mkdir()
    shutil.copy(ROOT / "models" / "digits" / "digits_cnn.onnx", folder / "good.onnx")
    (folder / "good.json").write_text("{}")
    (folder / "broken.onnx").write_bytes(b"no model")
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["other"], ["y"])], "g",
        [info("other", TensorProto.FLOAT, ["n", 1])], [info("y", TensorProto.FLOAT, ["n", 1])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, ir_version=9), folder / "inputs.onnx")
    work = small(digits(), tmp_path)
    (found,) = beside.others(tmp_path, work, work.feeds[0])
    assert found.name == "good" and found.backend in ("onnxruntime-cpu", "openvino")
    with found.open() as session:
        assert session.run(work.feeds[0])
    notes = capsys.readouterr().err.splitlines()
    assert [line[: line.index(".onnx")] for line in notes] == [
        "note: digits_cnn broken",
        "note: digits_cnn inputs",
    ]


def test_an_engine_that_is_wrong_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "digits_cnn"
    folder.mkdir()
    shutil.copy(ROOT / "models" / "digits" / "digits_cnn.onnx", folder / "good.onnx")
    work = small(digits(), tmp_path)
    answers = beside._answers

    def wrong(session: object, work: Work) -> list[dict[str, np.ndarray]]:
        found = answers(session, work)  # type: ignore[arg-type]
        if getattr(session, "engine", "") == "onnxruntime-cpu":
            return [{name: -array for name, array in each.items()} for each in found]
        return found

    monkeypatch.setattr(beside, "_answers", wrong)
    found = list(beside.others(tmp_path, work, work.feeds[0]))
    said = capsys.readouterr().err + "".join(each.notes for each in found)
    assert "onnxruntime-cpu is wrong: -6.0 dB" in said
    assert all(each.backend == "openvino" for each in found)


@pytest.mark.slow
def test_all_rows_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "digits_gru"
    folder.mkdir()
    shutil.copy(ROOT / "models" / "digits" / "digits_gru.onnx", folder / "fp32.onnx")
    words = ["--models", "digits_gru", "--drops", "0.5%", "--beside", tmp_path]
    monkeypatch.setattr(sys, "argv", ["promise", *map(str, words), "--json", str(tmp_path / "r")])
    assert command.main() == 0
    rows = json.loads((tmp_path / "r").read_text())
    names = {row["artifact"] for row in rows}
    assert {"promise 0.5%", "int8", "fp32", "fp32.onnx"} <= names
    (row,) = (row for row in rows if row["artifact"] == "fp32.onnx")
    assert row["drop"] == 0 and row["kept"] == 300 and row["p10_ms"] > 0
    assert min(row["by_fastest"] for row in rows) == 1
