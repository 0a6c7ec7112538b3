"""`--io`: artifacts that take raw images or codes and hand out integers, end to end."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from harness import model
from PIL import Image
from realmodels import shared
from typer.testing import CliRunner

import qgraph
from qgraph.artifact import Artifact
from qgraph.cli import app
from qgraph.data import ImageOptions, open_data
from qgraph.data.pixels import normalize
from qgraph.errors import ArtifactError, DataError, UsageError
from qgraph.float_session import FloatSession
from qgraph.interface import Interface
from qgraph.pipeline import Stage
from qgraph.recipe import Recipe, load_recipe
from qgraph.runtime import backend
from qgraph.runtime.backend import EngineOptions
from qgraph.runtime.executed import executed_ops

IMAGES = ImageOptions(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
RECIPE = Recipe(name="small", images=IMAGES, passes={"calibrate": {"observer": "minmax"}})


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgraph.engine_choice.BUDGET_S", 0.1)
    monkeypatch.setattr("qgraph.runtime.choose._ROUNDS", 2)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    proto = model(
        """net (float[n, 3, 12, 12] image) => (float[n, 5] logits) {
          c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(image, w, b)
          r = Relu(c)
          p = GlobalAveragePool(r)
          f = Flatten(p)
          logits = Gemm<transB = 1>(f, v, a)
        }""",
        {
            "w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
            "b": rng.standard_normal(8).astype(np.float32),
            "v": rng.standard_normal((5, 8)).astype(np.float32),
            "a": rng.standard_normal(5).astype(np.float32),
        },
    )
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def raw(count: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 12, 12, 3)).astype(np.uint8)


def floats(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(normalize(pixels, IMAGES).transpose(0, 3, 1, 2))


def original(path: Path, x: np.ndarray) -> np.ndarray:
    with backend("onnxruntime-cpu").open(path, EngineOptions()) as session:
        return session.run({"image": x})["logits"]


def dequantized(artifact: Artifact, outputs: dict[str, np.ndarray]) -> np.ndarray:
    """With nothing but what the model's own metadata says."""
    texts = {e.key: e.value for e in onnx.load(artifact.model_path).metadata_props}
    scale, zero = (texts[f"qgraph.output.logits.{key}"] for key in ("scale", "zero_point"))
    return (outputs["logits"].astype(np.int64) - int(zero)) * float(scale)


@pytest.mark.parametrize("precision", ["int8", "fp32", "int8-dynamic", "fp16"])
def test_takes_raw_images_and_hands_out_integers(net: Path, tmp_path: Path, precision: str) -> None:
    artifact = qgraph.compile(
        net, output=tmp_path / "a", recipe=RECIPE, precision=precision, data={"image": raw()},
        io="uint8",
    )  # fmt: skip
    pixels = raw(6, 1)
    with artifact.open() as session:
        assert [str(info) for info in session.inputs] == ["image uint8 [n, 12, 12, 3]"]
        assert session.outputs[0].dtype == "uint16"
        got = dequantized(artifact, session.run({"image": pixels}))
        one = dequantized(artifact, session.run({"image": pixels[:1]}))
    np.testing.assert_allclose(one, got[:1], atol=0.02 * np.ptp(got))
    want = original(net, floats(pixels))
    assert np.abs(got - want).max() < {"fp32": 1e-3}.get(precision, 0.03) * np.ptp(want)
    manifest = artifact.manifest
    assert manifest.accuracy is not None and manifest.accuracy.data == "held out"
    assert manifest.accuracy.outputs[0]["sqnr_db"] > 25
    assert manifest.io is not None and manifest.io["inputs"]["image"]["layout"] == "NHWC"
    labels = [timing.candidate for timing in manifest.timings if timing.p50_ms]
    assert f"onnxruntime-cpu {precision}" in labels and "onnxruntime-cpu fp32 (before)" in labels


def test_int8_reads_the_pixels_themselves(net: Path, tmp_path: Path) -> None:
    artifact = qgraph.compile(
        net, output=tmp_path / "a", recipe=RECIPE, data={"image": raw()}, io="uint8"
    )
    ran = executed_ops(
        artifact.model_path, {"image": raw(1)}, backend("onnxruntime-cpu"), EngineOptions()
    )
    counted = Counter(op.op_type for op in ran)
    assert counted["QLinearConv"] == 1
    assert not counted["Cast"] and not counted["Mul"]
    # Wider outputs keep nothing from running in integers.
    assert counted["QGemm"] == 1 and not counted["Gemm"]
    # One, of the output: the input needs none.
    assert counted["QuantizeLinear"] <= 1


def test_a_folder_of_images_and_raw_arrays_give_the_same_model(net: Path, tmp_path: Path) -> None:
    pixels, folder = raw(), tmp_path / "images"
    folder.mkdir()
    for index, each in enumerate(pixels):
        Image.fromarray(each).save(folder / f"{index:02}.png")
    results = []
    for name, data in (("a", folder), ("b", {"image": pixels})):
        artifact = qgraph.compile(net, output=tmp_path / name, recipe=RECIPE, data=data, io="uint8")
        with artifact.open() as session:
            results.append(session.run({"image": raw(4, 5)})["logits"])
    np.testing.assert_array_equal(*results)


def test_without_data_images_are_enough(net: Path, tmp_path: Path) -> None:
    artifact = qgraph.compile(
        net, output=tmp_path / "a", recipe=RECIPE, precision="fp32", io="uint8"
    )
    assert any("outputs stay in float" in line for line in artifact.manifest.warnings)
    pixels = raw(3, 1)
    with artifact.open() as session:
        got = session.run({"image": pixels})["logits"]
    np.testing.assert_allclose(got, original(net, floats(pixels)), rtol=1e-4, atol=1e-4)
    found = artifact.manifest.accuracy
    assert found is not None and found.data == "random" and found.outputs[0]["sqnr_db"] > 80


def test_codes_where_there_are_no_images(net: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((20, 3, 12, 12)).astype(np.float32)
    artifact = qgraph.compile(
        net, output=tmp_path / "a", data={"image": x}, io="uint8", io_outputs="uint8",
        settings=["calibrate.observer=minmax"],
    )  # fmt: skip
    io = artifact.manifest.io
    assert io is not None and io["inputs"]["image"]["kind"] == "codes"
    entry = io["inputs"]["image"]
    codes = np.clip(np.rint(x / np.float32(entry["scale"])) + entry["zero_point"], 0, 255)
    with artifact.open() as session:
        assert session.outputs[0].dtype == "uint8"
        got = dequantized(artifact, session.run({"image": codes.astype(np.uint8)}))
    want = original(net, x)
    assert np.abs(got - want).max() < 0.05 * np.ptp(want)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("recipe", [RECIPE, RECIPE.model_copy(update={"images": None})])
def test_an_artifact_is_fed_like_the_original_by_what_its_manifest_says(
    net: Path, tmp_path: Path, layout: str, recipe: Recipe
) -> None:
    x = floats(raw(20))
    artifact = qgraph.compile(
        net, output=tmp_path / "a", recipe=recipe, data={"image": x}, io="uint8",
        settings=[f"quantize_io.layout={layout}"],
    )  # fmt: skip
    interface = Interface.from_json(Artifact.load(tmp_path / "a").manifest.io)
    assert interface.to_json() == artifact.manifest.io
    with (
        backend("onnxruntime-cpu").open(net, EngineOptions()) as plain,
        FloatSession(artifact.open(), interface) as session,
    ):
        assert session.inputs == plain.inputs and session.outputs == plain.outputs
        got, want = (each.run({"image": x[:6]})["logits"] for each in (session, plain))
    assert got.dtype == np.float32 and np.abs(got - want).max() < 0.03 * np.ptp(want)


def test_a_damaged_record_of_the_interface_is_one_line() -> None:
    for entry in ({}, {"kind": "codes", "dtype": "uint8"}, {"kind": "pixels", "images": 3}, 7):
        with pytest.raises(ArtifactError, match="`io` can't be understood"):
            Interface.from_json({"inputs": {"x": entry}})
    assert not Interface.from_json(None)


def test_float_is_the_default(net: Path, tmp_path: Path) -> None:
    for name, wanted in (("a", None), ("b", "float")):
        artifact = qgraph.compile(
            net, output=tmp_path / name, recipe=RECIPE, data={"image": raw()}, io=wanted
        )
        assert artifact.manifest.io is None
        assert not [s for s in artifact.manifest.stages if s.name in ("quantize_io", "fold_images")]


def test_a_hook_can_verify_the_numbers(net: Path, tmp_path: Path) -> None:
    from qgraph.debug import verify

    seen: list[str] = []

    def hook(graph: Any, stage: Stage) -> None:
        seen.append(stage.name)

    qgraph.compile(
        net, output=tmp_path / "a", recipe=RECIPE, data={"image": raw()}, io="uint8",
        hooks=[verify("numeric", net), hook],
    )  # fmt: skip
    assert seen[-1] == "quantize_io" and "fold_images" in seen


# -- wrong uses ------------------------------------------------------------------------------------


def test_blurred_floats_are_refused_before_anything_runs(net: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((20, 3, 12, 12)).astype(np.float32)
    with pytest.raises(DataError, match="folder of images or uint8 arrays"):
        qgraph.compile(net, output=tmp_path / "a", recipe=RECIPE, data={"image": x}, io="uint8")
    assert not (tmp_path / "a").exists()


def test_unknown_types_are_refused(net: Path) -> None:
    with pytest.raises(UsageError, match="uint8"):
        qgraph.compile(net, output="unused", io="uint")
    with pytest.raises(UsageError, match="io-outputs"):
        qgraph.compile(net, output="unused", io_outputs="int4")
    with pytest.raises(UsageError, match="needs calibration data, or a recipe"):
        qgraph.compile(net, output="unused", precision="fp32", io="uint8")


# -- the command line ------------------------------------------------------------------------------


def test_compile_run_and_bench(net: Path, tmp_path: Path) -> None:
    def invoke(*args: Any) -> str:
        result = CliRunner().invoke(app, [str(each) for each in args])
        assert result.exit_code == 0, result.output
        return result.output

    recipe = tmp_path / "small.toml"
    recipe.write_text("[images]\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n")
    np.savez(tmp_path / "raw.npz", image=raw())
    folder = tmp_path / "images"
    folder.mkdir()
    for index, each in enumerate(raw(4)):
        Image.fromarray(each).save(folder / f"{index:02}.png")
    out = tmp_path / "a"
    text = invoke(
        "compile", net, "-o", out, "--data", folder, "--recipe", recipe, "--io", "uint8",
        "--set", "quantize_io.headroom=0.5",
    )  # fmt: skip
    assert "image: pixels, uint8, NHWC" in text and "logits: codes, uint16" in text
    ran = tmp_path / "ran.npz", tmp_path / "again.npz"
    invoke("run", out, "--data", folder, "-o", ran[0])
    invoke("run", out, "--data", tmp_path / "raw.npz", "--samples", 4, "-o", ran[1])
    with np.load(ran[0]) as a, np.load(ran[1]) as b:
        assert a["logits"].dtype == np.uint16
        np.testing.assert_array_equal(a["logits"], b["logits"])
    invoke("bench", out, "--data", folder, "--seconds", 0.05, "--no-memory")
    invoke("bench", out, "--seconds", 0.05, "--no-memory")
    wrong = CliRunner().invoke(app, ["compile", str(net), "--io", "uint7"])
    assert wrong.exit_code == 2 and "uint8" in wrong.output + wrong.stderr


# -- uint8 arrays as data --------------------------------------------------------------------------


def spec(*shape: Any) -> list[SimpleNamespace]:
    return [SimpleNamespace(name="image", dtype="float32", shape=shape)]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_uint8_arrays_are_normalised_as_images_are(layout: Any) -> None:
    pixels = raw(4)
    options = IMAGES.model_copy(update={"layout": layout})
    inputs = spec("n", 3, 12, 12) if layout == "NCHW" else spec("n", 12, 12, 3)
    want = normalize(pixels, options)
    want = want.transpose(0, 3, 1, 2) if layout == "NCHW" else want
    for given in (pixels, pixels.transpose(0, 3, 1, 2)):
        found = open_data({"image": given}, inputs, images=options)
        got = np.concatenate([sample["image"] for sample in found])
        np.testing.assert_array_equal(got, want)
    plain = open_data({"image": pixels}, inputs, images=options)
    other = open_data({"image": pixels}, inputs, images=options.model_copy(update={"mean": (0.5,)}))
    assert plain.fingerprint() != other.fingerprint()


def test_uint8_arrays_without_images_stay_an_error() -> None:
    with pytest.raises(DataError, match="imagenet-mean"):
        open_data({"image": raw(4)}, spec("n", 12, 12, 3))


# -- real models -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe", "floor"),
    [("mobilenet_v2", "imagenet-mean", 20.5), ("efficientnet_lite0", "imagenet-half", 20.5)],
)
def test_real_models_take_raw_images(name: str, recipe: str, floor: float, tmp_path: Path) -> None:
    path = shared("models", f"{name}.onnx")
    with np.load(shared("data", "imagenet_calib200_224_u8.npz")) as data:
        x, labels = data["x"], data["y"]
    artifact = qgraph.compile(
        path, output=tmp_path / "a", recipe=recipe, data={"input": x[:64]}, io="uint8"
    )
    images = load_recipe(recipe).images
    assert images is not None
    test = x[128:]
    f = np.ascontiguousarray(normalize(test, images).transpose(0, 3, 1, 2))
    with (
        backend("onnxruntime-cpu").open(path, EngineOptions()) as before,
        artifact.open() as after,
    ):
        want = np.concatenate(
            [before.run({"input": f[i : i + 8]})["logits"] for i in range(0, 72, 8)]
        )
        got = np.concatenate(
            [after.run({"input": test[i : i + 8]})["logits"] for i in range(0, 72, 8)]
        )
    assert got.dtype == np.uint16
    found = dequantized(artifact, {"logits": got})
    assert 10 * np.log10(np.sum(want**2) / np.sum((want - found) ** 2)) >= floor
    hits = [(logits.argmax(1) == labels[128:]).sum() for logits in (want, found)]
    assert hits[1] >= hits[0] - 2
