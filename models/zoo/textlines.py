"""Renders labelled text lines to calibrate and score a text recogniser with.

Fonts, sizes, colours, a slight rotation, blur, low resolution and noise vary from line to line,
so that a good recogniser makes a few errors and a worse one makes more. One seed gives one set of
lines (with one version of Pillow); calibration and evaluation lines share no text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.zoo.texts import SPLITS, random_text
from qgraph.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from PIL.Image import Image

    from models.zoo.fonts import FontLoader

HEIGHT = 48
WIDTH_STEP = 8


@dataclass(frozen=True)
class TextLine:
    """One rendered line.

    Attributes:
        pixels: uint8 [48, W], grey.
        text: What it says.
    """

    pixels: npt.NDArray[np.uint8]
    text: str

    def tensor(self) -> npt.NDArray[np.float32]:
        """Return the line as the recogniser takes it.

        Returns:
            float32 [1, 3, 48, W rounded up to a multiple of 8]: three equal channels of
            `(pixel / 255 - 0.5) / 0.5`, padded on the right with 0, as PP-OCR does it.
        """
        width = self.pixels.shape[1]
        out = np.zeros((1, 3, HEIGHT, -(-width // WIDTH_STEP) * WIDTH_STEP), np.float32)
        out[..., :width] = (self.pixels.astype(np.float32) / 255 - 0.5) / 0.5
        return out


def draw_lines(
    count: int, *, split: str, fonts: "Sequence[FontLoader]", seed: int = 0
) -> list[TextLine]:
    """Draw `count` lines with different texts; the first lines don't depend on `count`.

    Args:
        count: How many.
        split: `calibration` or `evaluation`.
        fonts: Loaders of the fonts to choose from, such as `models.zoo.fonts.load_fonts()`.
        seed: 0 or more; another seed gives other lines of the same part.

    Raises:
        UsageError: Unknown `split`, or no fonts.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if not fonts:
        raise UsageError("no fonts to draw with", fix="pass at least one font loader")
    lines: list[TextLine] = []
    used: set[str] = set()
    attempt = 0
    while len(lines) < count:
        rng = np.random.default_rng([seed, SPLITS.index(split), attempt])
        attempt += 1
        text = random_text(rng, split)
        if text in used:
            continue
        used.add(text)
        lines.append(TextLine(draw_line(text, fonts[int(rng.integers(len(fonts)))], rng), text))
    return lines


def draw_line(text: str, font: "FontLoader", rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw `text` as uint8 [48, W], with distortions drawn from `rng`."""
    from PIL import Image as Images
    from PIL import ImageFilter

    paper, ink = _colours(rng)
    image = _write(text, font, paper, ink, rng)
    image = image.rotate(rng.uniform(-2, 2), Images.Resampling.BICUBIC, True, fillcolor=paper)
    if rng.random() < 0.6:  # as if scanned at low resolution
        image = _to_height(image, int(rng.integers(14, 28)))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, image.height / 40)))
    return _add_noise(np.asarray(_to_height(image, HEIGHT), np.float32), rng)


def _colours(rng: np.random.Generator) -> tuple[int, int]:
    contrast = int(rng.integers(50, 200))
    dark = int(rng.integers(0, 255 - contrast))
    return (dark, dark + contrast) if rng.random() < 0.2 else (dark + contrast, dark)


def _write(
    text: str, font: "FontLoader", paper: int, ink: int, rng: np.random.Generator
) -> "Image":
    from PIL import Image as Images
    from PIL import ImageDraw

    face = font(int(rng.integers(36, 64)))
    left, top, right, bottom = face.getbbox(text)
    margins = rng.integers(2, 12, 4)
    width = int(right - left + margins[0] + margins[1])
    height = int(bottom - top + margins[2] + margins[3])
    image = Images.new("L", (width, height), paper)
    origin = (float(margins[0] - left), float(margins[2] - top))
    ImageDraw.Draw(image).text(origin, text, fill=ink, font=face)
    return image


def _to_height(image: "Image", height: int) -> "Image":
    from PIL import Image as Images

    width = max(1, round(image.width * height / image.height))
    return image.resize((width, height), Images.Resampling.BILINEAR)


def _add_noise(pixels: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    shade = np.linspace(0, rng.uniform(-30, 30), pixels.shape[1])
    noise = rng.normal(0, rng.uniform(2, 24), pixels.shape)
    return (pixels + shade + noise).round().clip(0, 255).astype(np.uint8)
