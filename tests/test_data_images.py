"""Images are preprocessed as the recipe says, checked against plain numpy."""

import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qgraph.data import ImageOptions, limits, open_data
from qgraph.errors import DataError
from qgraph.recipe import load_recipe


def spec(name: str, dtype: Any, *shape: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, dtype=dtype, shape=shape)


ANY = [spec("x", "float32", "n", None, None, None)]
RAW = ImageOptions(scale=1)


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def saved(folder: Path, *images: np.ndarray) -> Path:
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"i{index}.png")
    return folder


def only(source: Path, options: ImageOptions, inputs: Any = ANY) -> np.ndarray:
    (sample,) = list(open_data(source, inputs, images=options))
    return sample["x"]


def refused(source: Path, *words: str, options: Any = RAW, inputs: Any = ANY) -> None:
    with pytest.raises(DataError) as caught:
        list(open_data(source, inputs, images=options))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(6, 20), st.integers(6, 20)),
    crop=st.one_of(st.none(), st.integers(1, 6), st.tuples(st.integers(1, 6), st.integers(1, 6))),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    channels=st.sampled_from(["RGB", "BGR"]),
    scale=st.sampled_from([1.0, 1 / 255, 0.5]),
    mean=st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    std=st.lists(st.floats(0.1, 2), min_size=3, max_size=3),
)
def test_preprocessing_matches_numpy(tmp_path: Path, **case: Any) -> None:
    (height, width), crop = case.pop("size"), case.pop("crop")
    image = pixels(height, width)
    want = image.astype(np.float64)
    if crop is not None:
        high, wide = (crop, crop) if isinstance(crop, int) else crop
        top, left = round((height - high) / 2), round((width - wide) / 2)
        want = want[top : top + high, left : left + wide]
    if case["channels"] == "BGR":
        want = want[:, :, [2, 1, 0]]
    want = (want * case["scale"] - case["mean"]) / case["std"]
    want = want[None] if case["layout"] == "NHWC" else want.transpose(2, 0, 1)[None]
    got = only(saved(tmp_path, image), ImageOptions(crop=crop, **case))
    assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("resize", "size"), [(8, (8, 12)), (4, (4, 6)), ((5, 9), (5, 9)), (16, (16, 24)), (5, (5, 7))]
)
def test_resize_keeps_proportions_or_takes_height_and_width(
    resize: Any, size: tuple[int, int], tmp_path: Path
) -> None:
    image = pixels(8, 12)
    assert only(saved(tmp_path, image), ImageOptions(resize=resize)).shape == (1, 3, *size)


def test_resize_by_nearest_picks_pixels(tmp_path: Path) -> None:
    image = pixels(8, 12)
    options = ImageOptions(resize=4, interpolation="nearest", scale=1, layout="NHWC")
    got = only(saved(tmp_path, image), options)[0]
    np.testing.assert_array_equal(got, image[1::2, 1::2])


def test_shrinking_averages(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[::2] = 200
    got = only(saved(tmp_path, image), ImageOptions(resize=2, scale=1))
    assert abs(got.mean() - 100) < 3


def test_gray_and_alpha_and_palette(tmp_path: Path) -> None:
    image = pixels(4, 4)
    gray = image.astype(np.float64) @ [0.299, 0.587, 0.114]
    got = only(saved(tmp_path, image), ImageOptions(channels="gray", scale=1))
    assert got.shape == (1, 1, 4, 4) and abs(got[0, 0] - gray).max() <= 1
    rgba = np.dstack([image, np.full((4, 4), 7, np.uint8)])
    Image.fromarray(rgba, "RGBA").save(tmp_path / "i0.png")
    np.testing.assert_array_equal(only(tmp_path, RAW)[0].transpose(1, 2, 0), image)


def test_recipes_of_image_classifiers(tmp_path: Path) -> None:
    image = pixels(300, 400)
    folder = saved(tmp_path, image)
    inputs = [spec("x", "float32", "n", 3, 224, 224)]
    raw = only(folder, ImageOptions(resize=256, crop=224, scale=1), inputs)
    half = only(folder, load_recipe("imagenet-half").images, inputs)
    np.testing.assert_allclose(half, raw / 127.5 - 1, atol=1e-6)
    mean = np.reshape([0.485, 0.456, 0.406], (1, 3, 1, 1))
    std = np.reshape([0.229, 0.224, 0.225], (1, 3, 1, 1))
    normal = only(folder, load_recipe("imagenet-mean").images, inputs)
    np.testing.assert_allclose(normal, (raw / 255 - mean) / std, atol=1e-5)


def test_uint8_models_take_raw_pixels(tmp_path: Path) -> None:
    image = pixels(4, 5)
    inputs = [spec("x", "uint8", 1, 4, 5, 3)]
    got = only(saved(tmp_path, image), ImageOptions(scale=1, layout="NHWC"), inputs)
    np.testing.assert_array_equal(got[0], image)
    refused(tmp_path, "takes uint8, but [images] scales", options=ImageOptions(), inputs=inputs)


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "jpg", "jpeg", "JPG"])
def test_formats_in_order_of_their_names(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for index, name in ((2, "a10"), (1, "a2"), (3, "sub/a1")):
        image = Image.fromarray(np.full((2, 2, 3), 60 * index, np.uint8))
        image.save(tmp_path / f"{name}.{suffix}")
    (tmp_path / "notes.txt").write_text("left out")
    (tmp_path / ".hidden.png").write_text("left out")
    means = [round(float(s["x"].mean()) / 60) for s in open_data(tmp_path, ANY, images=RAW)]
    assert means == [1, 2, 3]


def test_images_of_a_fixed_batch(tmp_path: Path) -> None:
    folder = saved(tmp_path, *(pixels(2, 2, seed) for seed in range(5)))
    data = open_data(folder, [spec("x", "float32", 2, 3, 2, 2)], images=RAW)
    assert [s["x"].shape for s in data] == [(2, 3, 2, 2)] * 2 and data.count == 2


def test_fewer_samples_are_a_repeatable_draw(tmp_path: Path) -> None:
    folder = saved(tmp_path, *(np.full((1, 1, 3), i, np.uint8) for i in range(40)))

    def drawn(seed: int) -> list[int]:
        data = open_data(folder, ANY, images=RAW, samples=10, seed=seed)
        return [int(s["x"][0, 0, 0, 0]) for s in data]

    assert drawn(0) == drawn(0) == sorted(set(drawn(0))) and len(drawn(0)) == 10
    assert drawn(0) != drawn(1) and max(drawn(0)) > 20
    calibration, held = open_data(folder, ANY, images=RAW, samples=10).split(3)
    values = [int(s["x"][0, 0, 0, 0]) for part in (calibration, held) for s in part]
    assert sorted(values) == drawn(0) and (calibration.count, held.count) == (7, 3)


def test_images_are_not_opened_before_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path, *(pixels(2, 2, seed) for seed in range(10)))
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda f, **k: opened.append(f) or original(f, **k))
    data = open_data(folder, ANY, images=RAW)
    _, held = data.split(2)
    assert len(opened) == 1  # the first one, for the check
    assert len(list(held)) == 2 and len(opened) == 3


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    folder = saved(tmp_path, pixels(10, 12))
    inputs = [spec("x", "float32", "n", 3, 8, 8)]
    refused(folder, "i0.png: input 'x' expects [n, 3, 8, 8]", "[1, 3, 10, 12]", inputs=inputs)
    options = ImageOptions(resize=8, crop=8, layout="NHWC")
    refused(folder, "the image gives [1, 8, 8, 3]", options=options, inputs=inputs)
    refused(folder, "i0.png: is 10 x 12", "crop 11 x 11", options=ImageOptions(crop=11))
    refused(folder, "images can't feed this model", inputs=[spec("x", "float32", "n", 3)])
    refused(folder, "has no [images] table", "imagenet-mean", options=None)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [(9000, 9000), (12_000, 12_000), (60_000, 60_000)])
def test_decompression_bombs(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(*size))
    refused(tmp_path, "bomb.png: has", "pixels", "shrink the image")


def test_a_sliver_may_not_be_resized_to_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_PIXELS", 10_000)
    saved(tmp_path, pixels(1, 500))
    refused(tmp_path, "50000 x 100 pixels, more than 10,000", options=ImageOptions(resize=100))


def test_truncated_foreign_and_deep_images(tmp_path: Path) -> None:
    folder = saved(tmp_path, pixels(50, 50))
    raw = (folder / "i0.png").read_bytes()
    (folder / "i0.png").write_bytes(raw[: len(raw) // 2])
    refused(folder, "i0.png: can't be read as an image", "truncated")
    (folder / "i0.png").write_bytes(b"")
    refused(folder, "i0.png: can't be read as an image")
    Image.fromarray(pixels(4, 4)).save(folder / "i0.png", format="GIF")
    refused(folder, "i0.png: can't be read as an image")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(folder / "i0.png")
    refused(folder, "i0.png: is not an 8-bit image (mode I;16)")
    (folder / "i0.png").unlink()
    (folder / "i0.png").mkdir()
    refused(folder, "has no data files")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    position=st.integers(0, 10_000), value=st.integers(0, 255), kind=st.sampled_from(["png", "jpg"])
)
def test_flipped_bytes_are_read_or_refused(
    position: int, value: int, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / f"image.{kind}"
    Image.fromarray(pixels(8, 8)).save(path)
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] = value
    path.write_bytes(raw)
    try:
        only(path, RAW)
    except DataError as error:
        assert "\n" not in str(error)
