"""Real models on real data; skipped, with the reason, where they are not beside the checkout."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from harness import assert_close, run_reference
from realmodels import shared

import qgraph
from qgraph.metrics import metric
from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions
from qgraph.runtime.executed import executed_ops

pytestmark = pytest.mark.slow

# name, mean, std, least SQNR in dB that the int8 artifact must reach on images 128 to 199
CNNS = [
    ("mobilenet_v2", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 14.5),
    ("efficientnet_lite0", [0.5] * 3, [0.5] * 3, 17.7),
]


def images(mean: list[float], std: list[float], part: slice) -> tuple[np.ndarray, np.ndarray]:
    with np.load(shared("data", "imagenet_calib200_224_u8.npz")) as data:
        x = (data["x"][part].astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), data["y"][part]


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(("name", "mean", "std", "floor"), CNNS, ids=[row[0] for row in CNNS])
def test_int8_cnns_keep_their_accuracy(
    name: str, mean: list[float], std: list[float], floor: float, tmp_path: Path
) -> None:
    model = shared("models", f"{name}.onnx")
    x, _ = images(mean, std, slice(0, 128))
    artifact = qgraph.compile(model, output=tmp_path / name, precision="int8", data={"input": x})
    assert kinds(artifact.model_path)["BatchNormalization"] == 0
    assert kinds(artifact.model_path)["Shape"] == 0

    x, labels = images(mean, std, slice(128, 200))
    with backend("onnxruntime-cpu").open(model, EngineOptions()) as session:
        want = np.concatenate(
            [session.run({"input": x[i : i + 8]})["logits"] for i in range(0, 72, 8)]
        )
    with artifact.open() as session:
        got = np.concatenate(
            [session.run({"input": x[i : i + 8]})["logits"] for i in range(0, 72, 8)]
        )
    sqnr = 10 * np.log10(np.sum(want**2) / np.sum((want - got) ** 2))
    assert sqnr >= floor
    hits = [(logits.argmax(1) == labels).sum() for logits in (want, got)]
    assert hits[1] >= hits[0] - 2

    ran = executed_ops(
        artifact.model_path, {"input": x[:1]}, backend("onnxruntime-cpu"), EngineOptions()
    )
    counted = Counter(op.op_type for op in ran)
    assert counted["QLinearConv"] == kinds(model)["Conv"]
    assert counted["Conv"] == counted["FusedConv"] == 0


@pytest.mark.parametrize("name", [row[0] for row in CNNS])
def test_exact_passes_keep_the_numbers(name: str, tmp_path: Path) -> None:
    model = shared("models", f"{name}.onnx")
    artifact = qgraph.compile(model, output=tmp_path / name, precision="fp32")
    found = kinds(artifact.model_path)
    assert found["BatchNormalization"] == found["Shape"] == found["Identity"] == 0
    x = np.random.default_rng(1).standard_normal((2, 3, 224, 224)).astype(np.float32)
    want = run_reference(onnx.load(model), {"input": x})
    assert_close(want, run_reference(onnx.load(artifact.model_path), {"input": x}))


def lines(part: slice) -> tuple[list[np.ndarray], list[str]]:
    """Text lines as float32 [1, 3, 48, width] in -1 to 1, and what they say."""
    with np.load(shared("data", "ocr_lines_calib.npz")) as data:
        rows = zip(data["x"][part], data["w"][part], data["text"][part], strict=True)
        images, texts = [], []
        for image, width, text in rows:
            x = (image[None, None, :, :width].astype(np.float32) / 255 - 0.5) / 0.5
            images.append(np.repeat(x, 3, 1))
            texts.append(str(text))
        return images, texts


def test_the_text_recogniser_reads_as_well(tmp_path: Path) -> None:
    model = shared("models", "ppocrv6_rec_small.onnx")
    name = onnx.load(model).graph.input[0].name
    samples = [{name: image} for image in lines(slice(0, 50))[0]]
    floats = qgraph.compile(model, output=tmp_path / "fp32", precision="fp32", data=samples)
    assert kinds(floats.model_path)["BatchNormalization"] == kinds(floats.model_path)["Erf"] == 0
    artifact = qgraph.compile(model, output=tmp_path / "int8", precision="int8", data=samples)
    # The alphabet is in the metadata, which the artifact keeps.
    cer = metric("cer").bind([artifact.model_path])

    images, texts = lines(slice(50, 80))
    rows: dict[str, list[np.ndarray]] = {"original": [], "int8": []}
    with artifact.open() as session:
        for index, (image, text) in enumerate(zip(images, texts, strict=True)):
            feeds = {name: image}
            want = run_reference(onnx.load(model), feeds)
            if index < 5:
                assert_close(want, run_reference(onnx.load(floats.model_path), feeds))
            for kind, outputs in (("original", want), ("int8", session.run(feeds))):
                rows[kind].append(cer.contributions(outputs, {"text": np.array([text])}))
    original, int8 = (cer.score(np.concatenate(each)) for each in rows.values())
    assert int8 <= original + 0.01


def test_the_voice_detector_compiles_with_its_state(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [
        {
            "input": (rng.standard_normal((1, 576)) * 0.1).astype(np.float32),
            "state": (rng.standard_normal((2, 1, 128)) * 0.1).astype(np.float32),
            "sr": np.array(16000, np.int64),
        }
        for _ in range(10)
    ]
    model = shared("models", "silero_vad.onnx")
    artifact = qgraph.compile(model, output=tmp_path / "out", precision="int8", data=samples)
    assert any("nothing to quantize" in line for line in artifact.manifest.warnings)
    want = run_reference(onnx.load(model), samples[0])
    assert_close(want, run_reference(onnx.load(artifact.model_path), samples[0]))


def test_dynamic_axes_without_data_are_refused_with_the_reason(tmp_path: Path) -> None:
    model = shared("models", "silero_vad.onnx")
    with pytest.raises(qgraph.QGraphError, match="guessed inputs"):
        qgraph.compile(model, output=tmp_path / "out", precision="fp32")
